"""What the parts of an executor share."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Dict, Optional

import torch

from .arguments import BoundArguments
from .device_weights import DeviceWeights
from .errors import NOT_COMPILED, createPoptorchError
from .executor_optimizer import ExecutorOptimizer
from .options import Options
from .program import Program
from .random_state import DeviceGenerator


class ExecutorState:
    """The attributes of an executor."""

    _user_model: Any
    _training: bool
    _options: Options
    _generator: DeviceGenerator
    _optimizer: Optional[ExecutorOptimizer]
    _program: Optional[Program]
    _weights: Optional[DeviceWeights]
    _compiled_arguments: Optional[BoundArguments]
    _is_attached: bool
    _dirty_host_weights: bool
    _host_weights_version: int
    _compilation_time: timedelta
    _anchors: Dict[str, torch.Tensor]

    def isCompiled(self) -> bool:
        """Whether the model is compiled and not destroyed."""
        return self._program is not None

    def _live(self) -> Program:
        """The executable; an Error without one."""
        if self._program is None:
            raise createPoptorchError(NOT_COMPILED)
        return self._program
