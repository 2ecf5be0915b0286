"""PopART's enumerations: what a PopTorch program imports `popart` for.

`Options._Popart.set()` takes integers, and programs write them as `int(popart.RecomputationType.Standard)`. PopART's
graph builder and sessions are another way of writing programs, and not here.
"""

from __future__ import annotations

from typing import Any

from .enums import (
    AccumulateOuterFragmentSchedule,
    AutodiffStitchStrategy,
    BatchSerializationBatchSchedule,
    BatchSerializationMethod,
    BatchSerializationTransformContext,
    ExecutionPhaseIOSchedule,
    ExecutionPhaseSchedule,
    GradientTensorTrackingMethod,
    Instrumentation,
    MeanReductionStrategy,
    MergeVarUpdateType,
    RecomputationType,
    ReductionType,
    ReplicatedTensorSharding,
    SubgraphCopyingStrategy,
    SyncPattern,
    SyntheticDataMode,
    TensorStorage,
    TileSet,
    VirtualGraphMode,
)

__version__ = "3.4.0"
__all__ = [
    "AccumulateOuterFragmentSchedule",
    "AutodiffStitchStrategy",
    "BatchSerializationBatchSchedule",
    "BatchSerializationMethod",
    "BatchSerializationTransformContext",
    "ExecutionPhaseIOSchedule",
    "ExecutionPhaseSchedule",
    "GradientTensorTrackingMethod",
    "Instrumentation",
    "MeanReductionStrategy",
    "MergeVarUpdateType",
    "RecomputationType",
    "ReductionType",
    "ReplicatedTensorSharding",
    "SubgraphCopyingStrategy",
    "SyncPattern",
    "SyntheticDataMode",
    "TensorStorage",
    "TileSet",
    "VirtualGraphMode",
]


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"popart.{name}: the emulator has PopART's enumerations alone ({', '.join(__all__)}). "
        "Programs written for PopART itself need the Poplar SDK."
    )
