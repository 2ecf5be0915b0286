"""Private names of PopTorch that programs reach for all the same."""

from __future__ import annotations

from ._device.device_run import isRunningOnIpu
from .errors import createPoptorchError

__all__ = ["createPoptorchError", "isDispatchTracing", "isRunningOnIpu"]


def isDispatchTracing() -> bool:
    """Whether a forward pass on the device is under way; here that is the same as isRunningOnIpu()."""
    return isRunningOnIpu()
