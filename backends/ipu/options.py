"""A batch plan and section `ipu`, said in PopTorch's options."""

from __future__ import annotations

from typing import Any

import torch

from configs import BatchPlan
from configs.schema.device import IpuConfig

# popart.AccumulateOuterFragmentSchedule
_OUTER_SCHEDULES = {"scheduler": 0, "serial": 1, "overlap_cycles": 2, "overlap_memory": 3}
_RECOMPUTE_ALL = 4  # popart.RecomputationType.RecomputeAll: everything but the checkpoints


def set_training_options(poptorch: Any, options: Any, plan: BatchPlan, config: IpuConfig) -> None:
    """Batch arithmetic of training: the mean gradient over micro-batches and replicas; outputs summed over a call.

    Beside it, how the weight update is compiled; Graphcore's own image classification application chooses as the
    defaults do.

    Args:
        poptorch: the module.
        options: poptorch.Options, changed here.
        plan: the batch arithmetic.
        config: section `ipu`.
    """
    options.deviceIterations(plan.device_iterations)
    options.Training.gradientAccumulation(plan.gradient_accumulation)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    options.outputMode(poptorch.OutputMode.Sum)
    update = {
        "replicatedCollectivesSettings.mergeAllReduceCollectives": config.merge_all_reduces,
        "replicatedCollectivesSettings.prepareScheduleForMergingCollectives": config.merge_all_reduces,
        "scheduleNonWeightUpdateGradientConsumersEarly": config.merge_all_reduces,
        "accumulateOuterFragmentSettings.schedule": _OUTER_SCHEDULES[config.outer_schedule],
        "disableGradAccumulationTensorStreams": not config.gradient_streams,
    }
    for name, value in update.items():
        options._Popart.set(name, value)


def set_evaluation_options(poptorch: Any, options: Any, iterations: int) -> None:
    """Batch arithmetic of evaluation: the sums of each micro-batch come back.

    Args:
        poptorch: the module.
        options: poptorch.Options, changed here.
        iterations: micro-batches of each replica in one call; a pipeline needs as many as it has stages.
    """
    options.deviceIterations(iterations)
    options.outputMode(poptorch.OutputMode.All)


def set_device_options(
    poptorch: Any, options: Any, config: IpuConfig, stages: int, has_checkpoints: bool, seed: int
) -> None:
    """Set the options that training and evaluation share: placement, memory, precision, caching.

    Args:
        poptorch: the module.
        options: poptorch.Options, changed here.
        config: section `ipu`.
        stages: IPUs of one replica.
        has_checkpoints: whether outputs of modules are kept for recomputation.
        seed: of the device's random numbers, which round where rounding is stochastic.
    """
    options.randomSeed(seed)
    options.enableStableNorm(config.stable_norm)
    # Pipelined execution asks for accumulation even of one stage, and excludes overlapped transfers.
    pipelined, sharded = poptorch.PipelinedExecution, poptorch.ShardedExecution
    options.setExecutionStrategy((pipelined if stages > 1 else sharded)(poptorch.AutoStage.SameAsIpu))
    if has_checkpoints and stages == 1:  # a pipeline recomputes by itself
        options._Popart.set("autoRecomputation", _RECOMPUTE_ALL)
        options._Popart.set("explicitRecomputation", True)
    if config.precision != "32.32":
        options.Precision.setPartialsType(torch.float16 if config.partials == "half" else torch.float32)
        options.Precision.enableStochasticRounding(config.stochastic_rounding)
    if config.available_memory_proportion is not None:
        shares = {f"IPU{ipu}": config.available_memory_proportion for ipu in range(stages)}
        options.setAvailableMemoryProportion(shares)
    if config.optimizer_off_chip or config.optimizer_sharded:
        location = poptorch.TensorLocationSettings()
        location.useOnChipStorage(not config.optimizer_off_chip)
        location.useReplicatedTensorSharding(config.optimizer_sharded)
        options.TensorLocations.setOptimizerLocation(location)
    if config.io_tiles is not None:
        options.TensorLocations.numIOTiles(config.io_tiles)
    if config.prefetch_depth is not None:
        options._Popart.set("defaultPrefetchBufferingDepth", config.prefetch_depth)
    if config.executable_cache is not None:
        options.enableExecutableCaching(config.executable_cache)
    if config.synthetic_data:
        options.enableSyntheticData(True)
    if config.profile_dir is not None:
        options.enableProfiling(config.profile_dir)
    for name, value in config.popart.items():
        options._Popart.set(name, value)
