"""What the planner assumes beyond the data sheets (hardware.py): every constant with its source.

The fitted ones are those that `python -m backends.plan --calibrate` gives; a test holds these values to it.

Not modelled, for want of any published number: the time and code of operations too small to move much, such as the
proxy's statistics (about forty in each layer, on a few values for each channel), and a host too slow to decode images.
"""

# Fitted on the calibration half of published.py.
PRODUCT_EFFICIENCY = 0.348  # share of the peak that convolutions reach once their operands are in place
PRODUCT_OVERHEAD_CYCLES = 12760.0  # of one pass of one product: rearranging, exchange, reducing, synchronizing
ALL_REDUCE_EFFICIENCY = 0.201  # share of the links' bandwidth that an all-reduce with its weight update reaches

# On each tile, for each pass of each product: code, exchange code, control, and what uneven tiles leave unused. Fitted
# on the configurations of published.py that are known to run: the largest allowance that accepts all of them.
CODE_BYTES_PER_PRODUCT = 907.0

# Compiled code that is no product reaches about a quarter of the SRAM bandwidth. Source: Jia et al. 2019 (MK1).
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
