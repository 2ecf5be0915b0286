"""The compiler options that exist, by type; an unknown one is refused when the model is compiled."""

from __future__ import annotations

from typing import Any, Dict

from .._logging import logger
from ..errors import backend_error

BOOL = frozenset(
    """
aliasZeroCopy auto_round_num_ipus automaticLossScalingSettings.enabled
batchSerializationSettings.concatOnExecutionPhaseChange batchSerializationSettings.concatOnPipelineStageChange
batchSerializationSettings.concatOnVirtualGraphChange broadcast_buffers compileEngine constantWeights decomposeGradSum
delayVarUpdates disableGradAccumulationTensorStreams disableOptimizerStateTensorStreams dotOpNames
enableDistributedReplicatedGraphs enableEngineCaching enableExplicitIR enableExplicitMainLoops
enableFloatingPointChecks enableFullyConnectedPass enableGradientAccumulation enableInplaceAmbiguityChecking
enableLoadAndOffloadRNGState enableMergeExchange enableNonStableSoftmax enableOutlining enableOutliningCopyCostPruning
enablePipelining enablePrefetchDatastreams enableReplicatedGraphs enableSerializedMatmuls enableStableNorm
enableStochasticRounding enableSupportedDataTypeCasting ensureFp32LossScaleTensor explicitRecomputation
exportPoplarComputationGraph exportPoplarVertexGraph groupHostSync groupNormStridedChannelGrouping
instrumentWithHardwareCycleCounter opxAliasChecking opxModifyChecking rearrangeAnchorsOnHost rearrangeStreamsOnHost
replicatedCollectivesSettings.mergeAllReduceCollectives
replicatedCollectivesSettings.prepareScheduleForMergingCollectives scheduleNonWeightUpdateGradientConsumersEarly
separateCallOpPdfs separate_backward_phase serial_phases_execution strictOpVersions useHostCopyOps use_model
""".split()
)
INTEGER = frozenset(
    """
accumulateOuterFragmentSettings.schedule accumulationFactor accumulation_and_replication_reduction_type
automaticLossScalingSettings.updatePeriod batchSerializationSettings.factor compilationProgressTotal connection_type
defaultBufferingDepth defaultPrefetchBufferingDepth device_iterations distributed_process_id
executionPhaseSettings.phases executionPhaseSettings.stages execution_mode finalDotOp firstDotOp globalReplicaOffset
globalReplicationFactor gradient_accumulation input_cgt input_group_size ipu_id ipu_version looseThresholdAtPeak
max_repeat_logs mergeVarUpdateMemThreshold numIOTiles num_distributed_processes output_mode output_return_period
random_seed replication_factor swapLimitScheduler sync_pattern tensors_liveness transitiveClosureOptimizationThreshold
""".split()
)
ENUM = frozenset(
    """
accumulationAndReplicationReductionType autoRecomputation autodiffSettings.stitchStrategy
automaticLossScalingSettings.gradientTensorTrackingMethod batchSerializationSettings.batchSchedule
batchSerializationSettings.method batchSerializationSettings.transformContext
meanAccumulationAndReplicationReductionStrategy mergeVarUpdate subgraphCopyingStrategy syntheticDataMode
virtualGraphMode
""".split()
)
DOUBLE = frozenset(
    """
automaticLossScalingSettings.binEdgeLocation automaticLossScalingSettings.thresholdUpperCountProportion
outlineSequenceBreakCost outlineThreshold timeLimitScheduler
""".split()
)
STRING = frozenset(
    """
cachePath customCodeletCompileFlags kahnTieBreaker logDir log_dir model_name partialsTypeMatMuls
saveInitializersToFile serializedPoprithmsShiftGraphsDir
""".split()
)
LISTS = frozenset(
    """
accumulateOuterFragmentSettings.excludedVirtualGraphs customCodelets dotChecks hardwareInstrumentations
updatableNamedBuffers
""".split()
)
DICTIONARIES = frozenset(
    """
convolutionOptions engineOptions gclOptions lstmOptions matmulOptions reportOptions
""".split()
)
# Keys that the Python layer adds and consumes itself.
OWN = frozenset(
    "anchored_tensors available_memory_proportion compilation_progress_bar_fn ipuof_configs location_activation "
    "location_weight location_optimizer location_accumulator patterns patterns_level".split()
)


def validate_backend_options(options: Dict[str, Any]) -> None:
    """Check every option's name for the type of its value.

    A bool is looked up among the bool options only (bool before int: True is not 1).

    Raises:
        Error: no option of this name for values of this type, or no options of this type at all.
    """
    for name, value in options.items():
        if name in OWN:
            continue
        if isinstance(value, bool):
            _check("bool", name, value, name in BOOL)
        elif isinstance(value, int):
            _check("uint64", name, int(value), name in INTEGER or name in ENUM)
        elif isinstance(value, float):
            _check("double", name, value, name in DOUBLE)
        elif isinstance(value, str):
            _check("string", name, value, name in STRING)
        elif isinstance(value, (list, tuple, set)):
            for element in value:
                logger.debug("poptorch.Options added %s to %s", element, name)
            _check("container", name, value, name in LISTS)
        elif isinstance(value, dict):
            for key, element in value.items():
                logger.debug("poptorch.Options set %s[%s] to %s", name, key, element)
            _check("container", name, value, name in DICTIONARIES)
        else:
            raise backend_error(f"Unknown value type {type(value)} for option {name}")


def _check(kind: str, name: str, value: Any, is_known: bool) -> None:
    if not is_known:
        raise backend_error(f"Unknown {kind} option {name} (value {value!r})")
    if kind != "container":
        shown = str(value).lower() if isinstance(value, bool) else value
        logger.debug("poptorch.Options set %s to value %s", name, shown)
