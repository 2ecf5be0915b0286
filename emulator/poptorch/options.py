"""Options: everything a program can say about how its model is to run."""

from __future__ import annotations

import copy
import json
import os
from typing import Any, Dict, List, Optional

import torch

from . import enums
from ._logging import logger
from ._options import config_file
from ._options.attributes import Attribute
from ._options.config_file import ConfigFileError
from ._options.options_dict import OptionsDict
from ._options.strategies import (
    BlockId,
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
    _IExecutionStrategy,
)
from ._options.sub_options import (
    _DistributedOptions,
    _JitOptions,
    _PopartOptions,
    _PrecisionOptions,
    _TrainingOptions,
    require_type,
)
from ._options.tensor_locations import TensorLocationSettings, _TensorLocationOptions
from .enums import CommGroupType, ConnectionType, OutputMode, SyncPattern

__all__ = [
    "Attribute",
    "BlockId",
    "ConfigFileError",
    "Options",
    "ParallelPhasedExecution",
    "Phase",
    "PipelinedExecution",
    "SerialPhasedExecution",
    "ShardedExecution",
    "Stage",
    "TensorLocationSettings",
]


class Options(OptionsDict):
    """All options of one executor or data loader; frozen by handing them to either.

    POPTORCH_CACHE_DIR and POPTORCH_DEFAULT_OPTIONS (JSON, method names to arguments) change the defaults.
    """

    def __init__(self) -> None:
        super().__init__(
            replication_factor=1,
            input_group_size=1,
            input_cgt=CommGroupType.Consecutive,
            broadcast_buffers=True,
            device_iterations=1,
            log_dir=".",
            max_repeat_logs=4,
            auto_round_num_ipus=False,
            anchored_tensors={},
            output_mode=OutputMode.Default.value,
            output_return_period=1,
            connection_type=ConnectionType.Always.value,
            sync_pattern=SyncPattern.Full.value,
            available_memory_proportion={},
        )
        popart = _PopartOptions()
        self.__dict__.update(
            _popart=popart,
            _jit=_JitOptions(),
            _precision=_PrecisionOptions(popart),
            _training=_TrainingOptions(popart),
            _distributed=_DistributedOptions(),
            _tensor_locations=_TensorLocationOptions(),
            _execution_strategy=PipelinedExecution(),
            _source_location_excludes=["site-packages/torch", "site-packages/poptorch"],
            _relax_optimizer_checks=False,
            _show_compilation_progress_bar=True,
            _module_namescope_enabled=True,
            _emulates_unsupported=False,
        )
        if os.environ.get("POPTORCH_CACHE_DIR"):
            self.enableExecutableCaching(os.environ["POPTORCH_CACHE_DIR"])
        self.from_json(os.environ.get("POPTORCH_DEFAULT_OPTIONS", "{}"))

    @property
    def TensorLocations(self) -> _TensorLocationOptions:
        """Where tensors are kept."""
        return self._tensor_locations

    @property
    def Distributed(self) -> _DistributedOptions:
        """Which of how many processes this is."""
        return self._distributed

    @property
    def Jit(self) -> _JitOptions:
        """Kept for old programs."""
        return self._jit

    @property
    def Precision(self) -> _PrecisionOptions:
        """Number formats."""
        return self._precision

    @property
    def Training(self) -> _TrainingOptions:
        """Gradient accumulation and reduction."""
        return self._training

    @property
    def _Popart(self) -> _PopartOptions:
        return self._popart

    def from_json(self, string: str) -> Options:
        """Call methods by name: {"deviceIterations": 2, "Training.gradientAccumulation": 4, "f": [two, arguments]}."""
        for path, argument in json.loads(string).items():
            target: Any = self
            for name in path.split("."):
                target = getattr(target, name)
            if isinstance(argument, list):
                target(*argument)
            else:
                target(_as_enum(argument))
        return self

    def loadFromFile(self, filepath: str) -> Options:
        """Call methods from a file of lines such as `deviceIterations(1)`; # starts a comment."""
        config_file.apply(self, filepath)
        return self

    def sourceLocationExcludes(self, excludes: List[str]) -> Options:
        """Return paths left out of source locations."""
        self._source_location_excludes = excludes
        return self

    def appendToLocationExcludes(self, *excludes: str) -> Options:
        """More paths left out of source locations."""
        self._source_location_excludes = [*self._source_location_excludes, *excludes]
        return self

    def showCompilationProgressBar(self, show: bool = True) -> Options:
        """Time the compilation (the emulator shows no bar)."""
        self._show_compilation_progress_bar = show
        return self

    def relaxOptimizerAttributesChecks(self, relax: bool = True) -> Options:
        """Do not warn about attributes of the optimizer that appear later."""
        self._relax_optimizer_checks = relax
        return self

    def autoRoundNumIPUs(self, auto_round_num_ipus: bool = True) -> Options:
        """Reserve a power of two of IPUs where the model needs another number."""
        self.set(auto_round_num_ipus=auto_round_num_ipus)
        return self

    def deviceIterations(self, device_iterations: int) -> Options:
        """Weight updates (training) or batches (inference) per call."""
        self.set(device_iterations=device_iterations)
        return self

    def setExecutionStrategy(self, strategy: _IExecutionStrategy) -> Options:
        """Pipelined (default), sharded or phased execution."""
        require_type(strategy, _IExecutionStrategy, "strategy")
        self._execution_strategy = strategy
        return self

    def setAvailableMemoryProportion(self, available_memory_proportion: Dict[str, float]) -> Options:
        """Share of each IPU's memory for temporary data, as {"IPU0": 0.5}; no effect on results."""
        proportions = {}
        for key, share in available_memory_proportion.items():
            if not key.startswith("IPU"):
                raise AssertionError(f'Available memory proportions are given as {{"IPU0": 0.5}}. Invalid key: {key}')
            proportions[int(key[3:])] = share
        self.createOrSet(available_memory_proportion=proportions)
        return self

    def replicationFactor(self, replication_factor: int) -> Options:
        """Copy of the model that this process runs."""
        self.set(replication_factor=replication_factor)
        return self

    def inputReplicaGrouping(self, input_group_size: int, input_group_type: CommGroupType) -> Options:
        """Let groups of replicas read the same input."""
        if input_group_type == CommGroupType.All:
            raise ValueError("input_group_type cannot be All")
        if input_group_type == CommGroupType.NoGrouping:
            input_group_size, input_group_type = 1, CommGroupType.Consecutive
        if self.replication_factor < input_group_size:
            raise ValueError("input_group_size cannot be larger than replication_factor")
        if self.replication_factor % input_group_size:
            raise ValueError("input_group_size must be a factor of replication_factor")
        self.set(input_group_size=input_group_size, input_cgt=input_group_type)
        return self

    def broadcastBuffers(self, broadcast_buffers: bool = True) -> Options:
        """Allow each replica to keep its own values in buffers, with False."""
        self.set(broadcast_buffers=broadcast_buffers)
        return self

    def logDir(self, log_dir: str) -> Options:
        """Folder of log files."""
        self.set(log_dir=log_dir)
        return self

    def maxRepeatLogs(self, max_lines: Optional[int]) -> Options:
        """Most repetitions of a log line; None: no limit."""
        self.set(max_repeat_logs=(1 << 64) - 1 if max_lines is None else max_lines)
        return self

    def modelName(self, name: str) -> Options:
        """Name of the model in reports."""
        self.createOrSet(model_name=name)
        return self

    def enableExecutableCaching(self, path: Optional[str]) -> Options:
        """Keep executables in this folder; None: do not; the emulator only makes the folder."""
        if path is not None:
            self._Popart.set("cachePath", path)
        self._Popart.set("enableEngineCaching", path is not None)
        return self

    def useIpuModel(self, use_model: bool) -> Options:
        """Run on the IPU Model; wins over the environment."""
        self.createOrSet(use_model=use_model)
        return self

    def connectionType(self, connection_type: ConnectionType) -> Options:
        """When the device is attached."""
        require_type(connection_type, ConnectionType, "connection_type")
        self.set(connection_type=connection_type.value)
        return self

    def syncPattern(self, sync_pattern: SyncPattern) -> Options:
        """Set how IPUs wait for each other."""
        require_type(sync_pattern, SyncPattern, "sync_pattern")
        self.set(sync_pattern=sync_pattern.value)
        return self

    def useIpuId(self, ipu_id: int) -> Options:
        """Run on this IPU or group of IPUs."""
        require_type(ipu_id, int, "ipu_id")
        self.createOrSet(ipu_id=ipu_id)
        return self

    def useOfflineIpuTarget(self, ipu_version: int = 2) -> Options:
        """Compile only, for an IPU of this version."""
        self.connectionType(ConnectionType.Never)
        self.createOrSet(ipu_version=ipu_version)
        return self

    def anchorTensor(
        self,
        short_name: str,
        long_name: str,
        output_mode: Optional[OutputMode] = None,
        output_return_period: Optional[int] = 1,
    ) -> None:
        """Keep an intermediate tensor for getAnchoredTensor(short_name)."""
        period = output_return_period if output_mode == OutputMode.EveryN else 1
        self.anchored_tensors[short_name] = [long_name, output_mode is None, output_mode, period]

    def outputMode(self, output_mode: OutputMode, output_return_period: Optional[int] = None) -> Options:
        """Set which micro steps' outputs come back; EveryN needs a positive period."""
        require_type(output_mode, OutputMode, "output_mode")
        if output_mode == OutputMode.EveryN:
            if not output_return_period or output_return_period <= 0:
                raise AssertionError("EveryN anchor must have output_return_period set to valid positive integer")
        elif output_return_period:
            logger.info("output_return_period is ignored with output mode %s", output_mode)
        self.set(output_mode=output_mode.value, output_return_period=output_return_period or 1)
        return self

    def defaultOutputMode(self) -> bool:
        """Whether the output mode is still to be chosen (Final in training, All in inference)."""
        return bool(self.output_mode == OutputMode.Default)

    def randomSeed(self, random_seed: int) -> Options:
        """Seed the device's generator, and torch's own at once."""
        require_type(random_seed, int, "random_seed")
        torch.manual_seed(random_seed)
        self.createOrSet(random_seed=random_seed)
        return self

    def enableStableNorm(self, enabled: bool) -> Options:
        """Slower, more exact statistics (the emulator's always are)."""
        self._Popart.set("enableStableNorm", enabled)
        return self

    def enableSyntheticData(self, enabled: bool) -> Options:
        """Do not read inputs or return outputs; results are meaningless."""
        self._Popart.set("syntheticDataMode", 2 if enabled else 0)
        return self

    def logCycleCount(self, log_cycle_count: bool) -> Options:
        """Count device cycles (hardware only)."""
        self._Popart.set("instrumentWithHardwareCycleCounter", log_cycle_count)
        return self

    def enableProfiling(self, profile_dir: Optional[str] = None) -> Options:
        """Ask the engine for a profile (the emulator writes none)."""
        engine = dict(self._Popart.options.get("engineOptions", {}))
        engine.update(
            {
                "debug.allowOutOfMemory": "true",
                "autoReport.directory": profile_dir or ".",
                "autoReport.all": "true",
            }
        )
        self._Popart.setEngineOptions(engine)
        return self

    def disableModuleNamescope(self) -> Options:
        """Do not name operations after modules."""
        self._module_namescope_enabled = False
        return self

    def emulateUnsupportedOperators(self, enabled: bool = True) -> Options:
        """Compute what PopTorch cannot compile, instead of refusing it; an option of the emulator alone."""
        self._emulates_unsupported = enabled
        return self

    def updatableNamedBuffers(self, buffers: List[str]) -> Options:
        """Buffers that copyNamedBuffersToDevice() sends."""
        self._Popart.set("updatableNamedBuffers", buffers)
        return self

    def toDict(self) -> Dict[str, Any]:
        """Return all options in the back end's words; the output mode must have been chosen."""
        if self.defaultOutputMode():
            raise AssertionError("An output mode must be picked before serialisation")
        options = self.update({**self._execution_strategy.backendOptions(), **self._Popart.options})
        for part in (self._training, self._distributed, self._tensor_locations):
            options = part.update(options)
        return options

    def clone(self) -> Options:
        """Return an unfrozen copy."""
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        groups = ("Distributed", "Jit", "Precision", "TensorLocations", "Training", "_Popart")
        parts = [f"{name}={value!r}" for name, value in self._values.items()]
        return f"{type(self).__name__}({', '.join(parts + [f'{name}={getattr(self, name)!r}' for name in groups])})"


def _as_enum(value: Any) -> Any:
    """Return the member that "ConnectionType.OnDemand" names; anything else as it is."""
    if not isinstance(value, str) or value.count(".") != 1:
        return value
    kind, member = value.split(".")
    return getattr(getattr(enums, kind, None), member, value)
