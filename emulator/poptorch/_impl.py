"""Private names of PopTorch that programs reach for all the same."""

from __future__ import annotations

from ._device.device_run import isRunningOnIpu
from ._executor.wrapping import is_wrapped as isWrapped
from ._executor.wrapping import restore as _restoreWrapperIfNecessary
from ._executor.wrapping import restore_model as rewrapModelIfNecessary
from ._executor.wrapping import set_aside_model as unwrapModelIfNecessary
from .errors import createPoptorchError

__all__ = [
    "_restoreWrapperIfNecessary",
    "createPoptorchError",
    "isDispatchTracing",
    "isRunningOnIpu",
    "isWrapped",
    "rewrapModelIfNecessary",
    "unwrapModelIfNecessary",
]


def isDispatchTracing() -> bool:
    """Whether a forward pass on the device is under way; here that is the same as isRunningOnIpu()."""
    return isRunningOnIpu()
