"""The names of PopTorch's compiled module that programs reach for."""

from __future__ import annotations

from typing import Any, Dict

from ._device import device_run, hardware
from ._options.backend_options import validate_backend_options
from .errors import Error, RecoverableError, UnrecoverableError

__all__ = ["Error", "RecoverableError", "UnrecoverableError", "ipuHardwareVersion", "isCompilingWithDispatcher"]


def ipuHardwareVersion(num_ipus: int = 1) -> int:
    """The version of the IPUs; 0 where there are not as many."""
    return hardware.EMULATED_VERSION if hardware.ipuHardwareIsAvailable(num_ipus) else 0


def isCompilingWithDispatcher() -> bool:
    """Whether a forward pass on the device is under way."""
    return device_run.current is not None


def _validateOptions(options: Dict[str, Any]) -> None:
    validate_backend_options(options)
