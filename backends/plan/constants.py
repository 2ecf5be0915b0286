"""What the planner assumes beyond the data sheets (hardware.py): every constant with its source.

The fitted ones are those that `python -m backends.plan --calibrate` gives; a test holds these values to it. "The public
profile" is an owner's of a vision transformer that Poplar 3.4 compiled for an IPU21 (measured.py).
"""

# Fitted on the calibration half of published.py.
PRODUCT_EFFICIENCY = 0.330  # share of the peak that convolutions reach once their operands are in place
PRODUCT_OVERHEAD_CYCLES = 11669.0  # of one pass of one product: rearranging, exchange, reducing, synchronizing
ALL_REDUCE_EFFICIENCY = 0.264  # share of the links' bandwidth that an all-reduce with its weight update reaches

# On each tile, for each pass of each product: code, exchange code, control, and what uneven tiles leave unused. Fitted
# on the configurations of published.py that are known to run: the largest allowance that accepts all of them.
CODE_BYTES_PER_PRODUCT = 907.0

# Compiled code that is not a product reaches about a quarter of the SRAM bandwidth. Source: Jia et al. 2019 (MK1).
VECTOR_EFFICIENCY = 0.25

# Products on float16 take 16 input channels at once and on float32 8; fewer leave the rest of the unit idle. Source:
# the peak of 64 multiply-adds per cycle and tile as 16 inputs x 4 outputs, and 16 = 8 x 2 for float32 (inferred).
HALF_PRODUCT_WIDTH, SINGLE_PRODUCT_WIDTH = 16, 8

# A tensor below this size is not sharded over replicas. Source: PopART's default.
SMALLEST_SHARDED_TENSOR = 8192

# Passes over a layer in one micro-batch besides the forward one: the backward pass computes the gradients of input and
# weight, each as large as the forward pass, and elementwise work reads and writes about twice as much as forward.
BACKWARD_PASSES = 2

FLOAT32_BYTES = 4  # of what does not grow with the batch: statistics, the proxy's moments
PIXEL_BYTES = 1  # images travel as bytes and are normalized on the IPU

# Operations on a few values for each channel, such as the proxy's statistics (about forty in each layer). No published
# number of one. Its parts on an IPU21, in osmarks/ipu-stack (crates/ipu-codegen/src/cost.rs): 600 cycles for a phase of
# exchange (Poplar's own estimate of a global synchronization), 288 measured for a call of six workers with their
# rendezvous, 11 to launch it: 899, and about 100 for the values. The range is from a call without an exchange (299) to
# three phases (2,697), as a reduction in two stages takes.
SMALL_OPERATION_CYCLES = 1000.0
SMALL_OPERATION_FACTORS = (0.3, 3.0)
SMALL_BACKWARD_PASSES = 2.2  # 4,460 in the backward pass of ResNet-50 with GN + PN, 2,009 in the forward pass

# Exchange code on each tile for each of them: the public profile has 15,603 bytes on average for 261 compute sets.
# PopART outlines: operations of one kind and size share their code.
SMALL_OPERATION_CODE_BYTES = 60.0

# A copy between layouts that no kernel was made for, for each tile: the public profile's takes 126,283 cycles for
# 16 x 729 x 729 float16 values on 1,472 tiles. In 16.32 each pass casts, and so rearranges, the weights of products.
STRIDED_COPY_BYTES_PER_CYCLE = 0.0915

# Plans leave a tenth of the memory free. On the public profile the fullest tile, which decides, holds 8 % more than the
# average (596,494 and 550,544 bytes); in its float8 twin 11 %.
MEMORY_AIM = 0.90

# How far off the estimates may be, found on published.py (`--published` prints both).
# Time: the largest error of a published run that was not fitted, with either half fitted.
TIME_UNCERTAINTY = 0.19
# Memory: what a known configuration needs in truth, relative to the estimate, if its engineers filled nine to ten
# tenths of the memory: from the one that is estimated fullest to the one that is estimated emptiest.
MEMORY_FACTORS = (0.90, 1.41)

# JPEG files of 500 x 400 pixels that one core decodes, crops and resizes to 224 in a second (docs/speed.md).
DECODED_IMAGES_PER_CORE = 320.0
