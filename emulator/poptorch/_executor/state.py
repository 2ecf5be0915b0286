"""What the parts of an executor share."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Dict, Optional

import torch

from .._device.device_weights import DeviceWeights
from .._device.random_state import DeviceGenerator
from .._optimizer.executor_optimizer import ExecutorOptimizer
from ..errors import NOT_COMPILED, createPoptorchError
from ..options import Options
from .arguments import BoundArguments
from .program import Program


class ExecutorState:
    """The attributes of an executor."""

    _user_model: Any
    _training: bool
    _options: Options
    _generator: DeviceGenerator
    _optimizers: Optional[ExecutorOptimizer]
    _program: Optional[Program]
    _weights: Optional[DeviceWeights]
    _compiled_arguments: Optional[BoundArguments]
    _is_attached: bool
    _dirty_host_weights: bool
    _host_weights_version: int
    _compilation_time: timedelta
    _anchors: Dict[str, torch.Tensor]

    @property
    def _executable(self) -> Optional[Program]:
        """PopTorch's name of it, by which programs ask whether the model is compiled; None before and after."""
        return self._program

    @property
    def _optimizer(self) -> Optional[torch.optim.Optimizer]:
        """PopTorch's name of the program's optimizer, by which programs find it again; None in inference."""
        return None if self._optimizers is None else self._optimizers.torch_optimizer

    def isCompiled(self) -> bool:
        """Whether the model is compiled and not destroyed."""
        return self._program is not None

    def _live(self) -> Program:
        """Return the executable; an Error without one."""
        if self._program is None:
            raise createPoptorchError(NOT_COMPILED)
        return self._program
