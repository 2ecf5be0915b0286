"""PopART's enumerations for the compiler's options; members and values as there.

A member is not an integer: int() makes it one, and `_Popart.set()` takes nothing else.
"""

from __future__ import annotations

import enum


class _Choice(enum.Enum):
    """A value of one option."""

    def __int__(self) -> int:
        return int(self.value)

    def __index__(self) -> int:
        return int(self.value)


class SyntheticDataMode(_Choice):
    """What replaces the inputs that the host does not send ("syntheticDataMode")."""

    Off = 0
    Zeros = 1
    RandomNormal = 2
    RandomUniform = 3


class RecomputationType(_Choice):
    """Which activations are computed again in the backward pass ("autoRecomputation")."""

    NoRecompute = 0
    Standard = 1
    NormOnly = 2
    Pipeline = 3
    RecomputeAll = 4


class VirtualGraphMode(_Choice):
    """How operations come to IPUs ("virtualGraphMode")."""

    Off = 0
    Manual = 1
    Auto = 2
    ExecutionPhases = 3


class AccumulateOuterFragmentSchedule(_Choice):
    """The order of the operations after accumulation ("accumulateOuterFragmentSettings.schedule")."""

    Scheduler = 0
    Serial = 1
    OverlapCycleOptimized = 2
    OverlapMemoryOptimized = 3


class SubgraphCopyingStrategy(_Choice):
    """When a subgraph's inputs and outputs are copied ("subgraphCopyingStrategy")."""

    OnEnterAndExit = 0
    JustInTime = 1


class MergeVarUpdateType(_Choice):
    """Which weight updates are merged ("mergeVarUpdate")."""

    Off = 0
    All = 1
    AutoLoose = 2
    AutoTight = 3


class BatchSerializationBatchSchedule(_Choice):
    """The order inside a serialized batch ("batchSerializationSettings.batchSchedule")."""

    Scheduler = 0
    Isomorphic = 1
    OverlapOnIo = 2
    OverlapOnCompute = 3


class BatchSerializationMethod(_Choice):
    """How a batch is serialized ("batchSerializationSettings.method")."""

    UnrollDynamic = 0
    UnrollStatic = 1
    Loop = 2


class BatchSerializationTransformContext(_Choice):
    """When a batch is serialized ("batchSerializationSettings.transformContext"); each has two names."""

    Forward = 0
    Backward = 1
    Fwd = 0
    Bwd = 1


class GradientTensorTrackingMethod(_Choice):
    """The gradients loss scaling looks at ("automaticLossScalingSettings.gradientTensorTrackingMethod")."""

    AllNonViewChangingGradientTensors = 0
    ConvAndMatmulGradients = 1
    GradientsOfUserSpecifiedTensors = 2


class AutodiffStitchStrategy(_Choice):
    """How a backward graph gets its forward tensors ("autodiffSettings.stitchStrategy")."""

    RecomputeMinimal = 0
    RecomputeAllNonInputs = 1
    AddFwdOutputs = 2
    SafeAddFwdOutputs = 3


class ReductionType(_Choice):
    """How values are combined ("accumulationAndReplicationReductionType")."""

    Sum = 0
    Mean = 1
    NoReduction = 2


class MeanReductionStrategy(_Choice):
    """When a mean is taken ("meanAccumulationAndReplicationReductionStrategy")."""

    Running = 0
    Post = 1


class SyncPattern(_Choice):
    """How IPUs wait for each other ("sync_pattern")."""

    Full = 0
    SinglePipeline = 1
    ReplicaAndLadder = 2


class Instrumentation(_Choice):
    """What cycle counters measure ("hardwareInstrumentations")."""

    Outer = 0
    Inner = 1


class TensorStorage(_Choice):
    """Where a tensor is stored."""

    OnChip = 0
    OffChip = 1


class TileSet(_Choice):
    """Tiles for computing or for transfers."""

    Compute = 0
    IO = 1


class ReplicatedTensorSharding(_Choice):
    """Whether replicas share a tensor's parts."""

    Off = 0
    On = 1


class ExecutionPhaseIOSchedule(_Choice):
    """When a phase's tensors are loaded."""

    Preload = 0
    OnDemand = 1


class ExecutionPhaseSchedule(_Choice):
    """The order of a phase's updates."""

    Interleaving = 0
    Batch = 1
    BatchClusteredIO = 2
