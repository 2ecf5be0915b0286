"""The option groups reached through Options: Jit, Precision, Training, Distributed, TensorLocations, _Popart."""

from __future__ import annotations

import copy
import os
from typing import Any, Dict, List, Set, Union

import torch

from .._logging import logger
from ..enums import HalfFloatCastingBehavior, MeanReductionStrategy, ReductionType
from .options_dict import OptionsDict


def require_type(value: Any, expected: type, name: str) -> None:
    """Raise AssertionError unless `value` is of the expected type."""
    if not isinstance(value, expected):
        raise AssertionError(f"{name} needs to be set to a {expected.__name__}, got {value!r}")


class _PopartOptions:
    """Options handed to the compiler by name, unchecked until compilation (see backend_options)."""

    def __init__(self) -> None:
        self._is_frozen = False
        self.options: Dict[str, Any] = {}
        self.set("instrumentWithHardwareCycleCounter", False)
        self.set("rearrangeAnchorsOnHost", False)

    def __deepcopy__(self, memo: Dict[int, Any]) -> _PopartOptions:
        duplicate = _PopartOptions()
        memo[id(self)] = duplicate
        duplicate.options = copy.deepcopy(self.options, memo)
        return duplicate

    def checkIsFrozen(self, option: Any = None) -> None:
        """Raise AttributeError if the options are frozen."""
        if option != "_is_frozen" and self._is_frozen:
            raise AttributeError("Can't modify frozen Options")

    def set(self, key: str, value: Union[int, float, str, List[str], Set[str]]) -> _PopartOptions:
        """Set one compiler option; an unknown key is an Error when the model is compiled."""
        self.checkIsFrozen()
        self.options[key] = value
        return self

    def setEngineOptions(self, engine_options: Dict[str, str]) -> _PopartOptions:
        """Set the engine's options (no effect on results)."""
        self.set("engineOptions", engine_options)  # type: ignore[arg-type]
        return self

    def setPatterns(self, patterns: Dict[str, bool], level: int = 2) -> _PopartOptions:
        """Switch graph patterns on or off (no effect on results)."""
        require_type(level, int, "level")
        require_type(patterns, dict, "patterns")
        self.set("patterns_level", level)
        self.set("patterns", patterns)  # type: ignore[arg-type]
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.options.items())})"


class _JitOptions(OptionsDict):
    """Options.Jit: kept for old programs."""

    def traceModel(self, trace_model: bool) -> _JitOptions:
        """Warn; True is a ValueError, since tracing by torch.jit is gone."""
        logger.warning("[Deprecated] options.Jit.traceModel() has no effect and will go: do not call it")
        if trace_model:
            raise ValueError("options.Jit.traceModel(True) is no longer supported")
        return self


class _PrecisionOptions(OptionsDict):
    """Options.Precision."""

    def __init__(self, popart_options: _PopartOptions) -> None:
        super().__init__()
        self.__dict__["_popart_options"] = popart_options

    def halfFloatCasting(self, half_float_casting: HalfFloatCastingBehavior) -> _PrecisionOptions:
        """Warn: mixed half and float operands always become float, as in torch."""
        logger.warning("[Deprecated] options.Precision.halfFloatCasting() has no effect: do not call it")
        return self

    def runningStatisticsAlwaysFloat(self, value: bool) -> _PrecisionOptions:
        """Warn: running statistics always have the type of the module's buffers."""
        if not isinstance(value, bool):
            raise ValueError(f"runningStatisticsAlwaysFloat needs to be set to a bool, got {value!r}")
        logger.warning("[Deprecated] options.Precision.runningStatisticsAlwaysFloat() has no effect: do not call it")
        return self

    def enableFloatingPointExceptions(self, enabled: bool) -> _PrecisionOptions:
        """Stop with an error when a result is not a number or overflows."""
        require_type(enabled, bool, "enableFloatingPointExceptions")
        self._popart_options.set("enableFloatingPointChecks", enabled)
        return self

    def enableStochasticRounding(self, enabled: bool) -> _PrecisionOptions:
        """Round half precision results at random (in the emulator: weights, when they are updated)."""
        self._popart_options.set("enableStochasticRounding", enabled)
        return self

    def setPartialsType(self, dtype: torch.dtype) -> _PrecisionOptions:
        """Type of partial sums; replaces the whole of the back end's convolutionOptions."""
        names = {torch.float32: "float", torch.float16: "half"}
        if dtype not in names:
            raise ValueError(f"parameter to setPartialsType should be either torch.float or torch.half, got {dtype}")
        self._popart_options.set("partialsTypeMatMuls", names[dtype])
        self._popart_options.set("convolutionOptions", {"partialsType": names[dtype]})
        return self


class _TrainingOptions(OptionsDict):
    """Options.Training."""

    def __init__(self, popart_options: _PopartOptions) -> None:
        super().__init__(
            gradient_accumulation=1,
            accumulation_and_replication_reduction_type=ReductionType.Mean,
            meanAccumulationAndReplicationReductionStrategy=MeanReductionStrategy.Post,
        )
        self.__dict__["_popart_options"] = popart_options

    def gradientAccumulation(self, gradient_accumulation: int) -> _TrainingOptions:
        """Micro batches per weight update and replica."""
        self.set(gradient_accumulation=gradient_accumulation)
        return self

    def accumulationAndReplicationReductionType(self, reduction_type: ReductionType) -> _TrainingOptions:
        """Whether gradients are summed or averaged over accumulation steps and replicas."""
        if not isinstance(reduction_type, ReductionType) or reduction_type == ReductionType.NoReduction:
            raise ValueError(
                "accumulationAndReplicationReductionType must be set to poptorch.ReductionType.Mean or "
                f"poptorch.ReductionType.Sum, got {reduction_type!r}"
            )
        self.set(accumulation_and_replication_reduction_type=reduction_type)
        return self

    def setMeanAccumulationAndReplicationReductionStrategy(
        self, mean_reduction_strategy: MeanReductionStrategy
    ) -> _TrainingOptions:
        """When the mean is taken; matters only in half precision."""
        self.set(meanAccumulationAndReplicationReductionStrategy=mean_reduction_strategy)
        return self

    def setAutomaticLossScaling(self, enabled: bool) -> _TrainingOptions:
        """Let the device choose the loss scale."""
        self._popart_options.set("automaticLossScalingSettings.enabled", enabled)
        return self

    def setConvolutionDithering(self, enabled: bool) -> _TrainingOptions:
        """Spread convolutions over tiles; replaces the whole of the back end's convolutionOptions."""
        self._popart_options.set("convolutionOptions", {"enableConvDithering": enabled})
        return self


class _DistributedOptions(OptionsDict):
    """Options.Distributed: which of how many processes this is; read from OpenMPI's variables at first."""

    def __init__(self) -> None:
        super().__init__(num_distributed_processes=1, distributed_process_id=0, ipuof_configs={})
        self.setEnvVarNames("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")

    def disable(self) -> _DistributedOptions:
        """Be the only process, whatever the environment says."""
        self.set(num_distributed_processes=1, distributed_process_id=0)
        return self

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> _DistributedOptions:
        """Read the number of processes and this one's index from these environment variables."""
        process_id = int(os.environ.get(var_process_id, "0"))
        return self.configureProcessId(process_id, int(os.environ.get(var_num_processes, "1")))

    def configureProcessId(self, process_id: int, num_processes: int) -> _DistributedOptions:
        """Say directly which of how many processes this is."""
        self.set(distributed_process_id=process_id, num_distributed_processes=num_processes)
        return self

    @property
    def processId(self) -> int:
        """Index of this process."""
        return int(self.distributed_process_id)

    @property
    def numProcesses(self) -> int:
        """Number of processes that train together."""
        return int(self.num_distributed_processes)
