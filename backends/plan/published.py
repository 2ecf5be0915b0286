"""Published training throughputs, and the configurations that they were measured with.

Throughputs: Graphcore's performance results for Poplar SDK 3.0, and its account of MLPerf Training 1.1. Configurations:
configs.yml of Graphcore's public examples (vision/cnns/pytorch and vision/cnns/tensorflow1), where the published global
batch identifies one; what had to be assumed is said at the row. The networks are this project's: ResNets in v2 order
instead of v1.5 (convolutions of the same sizes; the order of norm and convolution differs).

Every second row of the published table, from the first on, calibrates; the others judge. That was settled before the
constants were fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional, Tuple

from backends.plan.execution import Execution, OptimizerState


@dataclass(frozen=True)
class Configuration:
    """A network and how it was run.

    Args:
        name: to print.
        network: name of the network in models/.
        norm: as NormActFactory takes it, without Proxy Normalization.
        num_groups: of group norm; None for batch norm.
        image_size: in pixels.
        system: key of SYSTEMS.
        execution: as configured.
    """

    name: str
    network: str
    norm: str
    num_groups: Optional[int]
    image_size: int
    system: str
    execution: Execution


@dataclass(frozen=True)
class Published:
    """A configuration and its throughput.

    Args:
        configuration: as far as it is public.
        images_per_second: as published.
        note: what the publication leaves open, and what was taken.
    """

    configuration: Configuration
    images_per_second: float
    note: str = ""


# TensorFlow 1's is a sequential pipeline on one IPU: it keeps the inputs of seven parts and recomputes the rest.
_RESNET_CHECKPOINTS = (
    "stages.0.1.norm1",
    "stages.0.2",
    "stages.1.1.norm1",
    "stages.1.3",
    "stages.2.1.norm1",
    "stages.2.4.norm1",
)
# PyTorch's keeps the sums at the ends of blocks, and everything in the last stage.
_PYTORCH_RESNET_CHECKPOINTS = (
    *(f"stages.{stage}.{block}" for stage, blocks in enumerate((3, 4, 6, 2)) for block in range(blocks)),
    *(f"stages.3.{b}.{name}" for b in range(3) for name in ("norm1", "conv1", "norm2", "conv2", "norm3")),
    "stages.3.0.projection",
    "norm",
)

_LARS = OptimizerState("sgd", accumulator_bits=16, state_bits=16)  # one momentum, in the weights' type
_SGD_COMBINED = OptimizerState("sgd", combined_accumulator=True)
_RMSPROP = OptimizerState("rmsprop")  # with momentum

_RESNET_TF = Execution(
    micro_batch_size=22,
    gradient_accumulation=10,
    replicas=16,
    checkpoints=_RESNET_CHECKPOINTS,
    recompute=True,
    available_memory_proportion=(0.15,),
    optimizer=_LARS,
)
_RESNET_TF_POD64 = replace(_RESNET_TF, micro_batch_size=20, gradient_accumulation=4, replicas=64)
_RESNET_PYTORCH = Execution(
    micro_batch_size=18,
    gradient_accumulation=57,
    replicas=16,
    checkpoints=_PYTORCH_RESNET_CHECKPOINTS,
    recompute=True,
    available_memory_proportion=(0.16,),
    optimizer=_SGD_COMBINED,
)
_B4_PYTORCH = Execution(
    micro_batch_size=4,
    gradient_accumulation=64,
    replicas=8,
    splits=("stages.3.0.norm2",),
    checkpoints=("stages.1.1", "stages.1.3"),
    available_memory_proportion=(0.1,),
    optimizer=replace(_RMSPROP, sharded=True),
)
_B4_TF = Execution(
    micro_batch_size=3,
    gradient_accumulation=256,
    replicas=8,
    splits=("stages.3.0",),
    available_memory_proportion=(0.4,),
    optimizer=_LARS,
)
_RESNEXT_TF = Execution(
    micro_batch_size=6,
    gradient_accumulation=16,
    replicas=8,
    splits=("stages.2.4.norm1",),
    optimizer=_LARS,
)


def _resnet(name: str, execution: Execution, system: str = "bow") -> Configuration:
    return Configuration(f"ResNet-50, {name}", "resnet50", "batch", None, 224, system, execution)


def _efficientnet(name: str, network: str, image_size: int, execution: Execution, system: str = "bow") -> Configuration:
    return Configuration(name, f"efficientnet_{network}", "group", 4, image_size, system, execution)


# In the order of the published table.
PUBLISHED: Tuple[Published, ...] = (
    Published(_resnet("PyTorch, Bow Pod16", _RESNET_PYTORCH), 37061, "batch 16,384 is 16 x 57 x 18 = 16,416, rounded"),
    Published(_resnet("TF1, Bow Pod16", _RESNET_TF), 44059),
    Published(_resnet("TF1, Bow Pod64", _RESNET_TF_POD64), 153205),
    Published(
        _resnet("TF1, Bow Pod256", replace(_RESNET_TF_POD64, gradient_accumulation=2, replicas=256)),
        456906,
        "no configuration is public; batch 10,240 is Pod64's micro-batch of 20 twice on each IPU",
    ),
    Published(
        _efficientnet(
            "EfficientNet-B4 G16, PyTorch, Bow Pod16",
            "b4_g16",
            380,
            replace(_B4_PYTORCH, gradient_accumulation=32, precision="16.32"),
        ),
        8263,
        "the public configuration has a batch of 2,048; batch 1,024 is taken as half its gradient accumulation, and "
        "precision 16.32 as float32 weights",
    ),
    Published(_efficientnet("EfficientNet-B4 G16, TF1, Bow Pod16", "b4_g16", 380, _B4_TF), 9000),
    Published(
        _efficientnet(
            "EfficientNet-B4 G16, TF1, Bow Pod64", "b4_g16", 380, replace(_B4_TF, gradient_accumulation=64, replicas=32)
        ),
        34140,
    ),
    Published(
        _efficientnet(
            "EfficientNet-B4 G16, TF1, Bow Pod256",
            "b4_g16",
            380,
            replace(_B4_TF, gradient_accumulation=16, replicas=128),
        ),
        122665,
        "no configuration is public; batch 6,144 with Pod64's micro-batch of 3",
    ),
    Published(
        Configuration("ResNeXt-101, TF1, Bow Pod16", "resnext101_32x4d", "group", 32, 224, "bow", _RESNEXT_TF), 12277
    ),
    Published(
        _resnet("MLPerf 1.1, MK2 Pod16", _RESNET_TF, "mk2"),
        30000,
        "published as about 30,000, with an earlier SDK; the later public configuration of the program is taken",
    ),
)
CALIBRATION, JUDGED = PUBLISHED[::2], PUBLISHED[1::2]

# Further configurations that run. (MobileNetV3-L on four IPUs is known too; this project has no such network.)
KNOWN_GOOD: Tuple[Configuration, ...] = (
    _resnet("PyTorch", _RESNET_PYTORCH, "mk2"),
    _efficientnet(
        "EfficientNet-B0 G16, PyTorch",
        "b0_g16",
        224,
        Execution(
            micro_batch_size=20,
            gradient_accumulation=5,
            replicas=8,
            splits=("stages.3.0",),
            available_memory_proportion=(0.15,),
            optimizer=_RMSPROP,
        ),
        "mk2",
    ),
    _efficientnet("EfficientNet-B4 G16, PyTorch", "b4_g16", 380, _B4_PYTORCH, "mk2"),
    _efficientnet(
        "EfficientNet-B4, PyTorch",
        "b4",
        380,
        replace(
            _B4_PYTORCH,
            gradient_accumulation=48,
            replicas=4,
            splits=("stages.1.1", "stages.3.0", "stages.4.5"),
            checkpoints=(),
        ),
        "mk2",
    ),
)
