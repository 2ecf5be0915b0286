"""PopART's session options by name, for `ipu.popart`: which exist, of which type, and which are other fields' affair.

Source: PopTorch 3.4's compiler, which hands them on to PopART's SessionOptions; those with names in snake_case are its
own. Lists and dictionaries are left out.
"""

from __future__ import annotations

import difflib
from typing import Dict, Mapping, Union

from configs import ConfigError

Value = Union[bool, int, float, str]

# What sets them: fields of section `ipu`, or others.
TAKEN: Dict[str, str] = {
    "accumulateOuterFragmentSettings.schedule": "ipu.outer_schedule",
    "accumulationAndReplicationReductionType": "batch",
    "accumulationFactor": "batch",
    "autoRecomputation": "ipu.checkpoints",
    "automaticLossScalingSettings.enabled": "ipu.loss_scaling",
    "cachePath": "ipu.executable_cache",
    "defaultPrefetchBufferingDepth": "ipu.prefetch_depth",
    "disableGradAccumulationTensorStreams": "ipu.gradient_streams",
    "disableOptimizerStateTensorStreams": "checkpoints, which read the optimizer's state",
    "enableDistributedReplicatedGraphs": "ipu.ipus",
    "enableEngineCaching": "ipu.executable_cache",
    "enableGradientAccumulation": "batch",
    "enablePipelining": "ipu.splits",
    "enableReplicatedGraphs": "ipu.ipus",
    "enableStableNorm": "ipu.stable_norm",
    "enableStochasticRounding": "ipu.stochastic_rounding",
    "explicitRecomputation": "ipu.checkpoints",
    "globalReplicaOffset": "ipu.ipus",
    "globalReplicationFactor": "ipu.ipus",
    "groupNormStridedChannelGrouping": "norm.grouping",
    "meanAccumulationAndReplicationReductionStrategy": "batch",
    "numIOTiles": "ipu.io_tiles",
    "partialsTypeMatMuls": "ipu.partials",
    "replicatedCollectivesSettings.mergeAllReduceCollectives": "ipu.merge_all_reduces",
    "replicatedCollectivesSettings.prepareScheduleForMergingCollectives": "ipu.merge_all_reduces",
    "scheduleNonWeightUpdateGradientConsumersEarly": "ipu.merge_all_reduces",
    "syntheticDataMode": "ipu.synthetic_data",
    "virtualGraphMode": "ipu.splits",
}
OPTIONS = {
    bool: """
aliasZeroCopy batchSerializationSettings.concatOnExecutionPhaseChange
batchSerializationSettings.concatOnPipelineStageChange batchSerializationSettings.concatOnVirtualGraphChange
compileEngine constantWeights decomposeGradSum delayVarUpdates dotOpNames
enableExplicitIR enableExplicitMainLoops enableFloatingPointChecks enableFullyConnectedPass
enableInplaceAmbiguityChecking enableLoadAndOffloadRNGState enableMergeExchange enableNonStableSoftmax enableOutlining
enableOutliningCopyCostPruning enablePrefetchDatastreams enableSerializedMatmuls enableSupportedDataTypeCasting
ensureFp32LossScaleTensor exportPoplarComputationGraph exportPoplarVertexGraph groupHostSync
instrumentWithHardwareCycleCounter opxAliasChecking opxModifyChecking rearrangeAnchorsOnHost rearrangeStreamsOnHost
separateCallOpPdfs strictOpVersions useHostCopyOps
""".split(),
    int: """
autodiffSettings.stitchStrategy automaticLossScalingSettings.gradientTensorTrackingMethod
automaticLossScalingSettings.updatePeriod batchSerializationSettings.batchSchedule batchSerializationSettings.factor
batchSerializationSettings.method batchSerializationSettings.transformContext compilationProgressTotal
defaultBufferingDepth executionPhaseSettings.phases executionPhaseSettings.stages finalDotOp firstDotOp
looseThresholdAtPeak mergeVarUpdate mergeVarUpdateMemThreshold subgraphCopyingStrategy swapLimitScheduler
transitiveClosureOptimizationThreshold
""".split(),
    float: """
automaticLossScalingSettings.binEdgeLocation automaticLossScalingSettings.thresholdUpperCountProportion
outlineSequenceBreakCost outlineThreshold timeLimitScheduler
""".split(),
    str: """
customCodeletCompileFlags kahnTieBreaker logDir saveInitializersToFile serializedPoprithmsShiftGraphsDir
""".split(),
}


def check_popart_options(given: Mapping[str, Value]) -> None:
    """Refuse what PopTorch would only refuse after it has traced the network, and what another field sets.

    Raises:
        ConfigError: an unknown name, with the nearest; a value of another type; an option of another field.
    """
    kinds = {name: kind for kind, names in OPTIONS.items() for name in names}
    for name, value in given.items():
        if name in TAKEN:
            raise ConfigError(f"ipu.popart {name} is set by {TAKEN[name]}; leave it out")
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=3, cutoff=0.0)
            raise ConfigError(f"ipu.popart {name!r} is not an option of PopART 3.4; the nearest are {', '.join(near)}")
        if type(value) is not kinds[name]:
            raise ConfigError(f"ipu.popart {name} = {value!r} must be of type {kinds[name].__name__}")
