"""The names of PopTorch's compiled module that programs reach for."""

from __future__ import annotations

import enum
from typing import Any, Dict

from ._device import device_run, hardware
from ._options.backend_options import validate_backend_options
from .errors import Error, RecoverableError, UnrecoverableError, error_of

__all__ = [
    "Error",
    "RecoverableError",
    "TestErrorType",
    "UnrecoverableError",
    "ipuHardwareVersion",
    "isCompilingWithDispatcher",
]


class TestErrorType(enum.Enum):
    """Where an error of _throwTestError() pretends to come from."""

    __test__ = False  # no test, whatever pytest thinks of its name

    Poptorch = 0
    Popart = 1
    PopartInternal = 2
    Poplibs = 3
    PoplarUnrecoverable = 4
    PoplarUnknown = 5
    PoplarRecoverableFullReset = 6
    PoplarLinkError = 7


_ERRORS: Dict[TestErrorType, Any] = {
    TestErrorType.Poptorch: ("poptorch_cpp_error", Error),
    TestErrorType.Popart: ("popart_exception", Error),
    TestErrorType.PopartInternal: ("popart_internal_exception", Error),
    TestErrorType.Poplibs: ("poplibs_exception", Error),
    TestErrorType.PoplarUnrecoverable: ("poplar_unrecoverable_runtime_error", UnrecoverableError),
    TestErrorType.PoplarUnknown: ("poplar_runtime_error", Error),
    TestErrorType.PoplarRecoverableFullReset: ("poplar_recoverable_runtime_error", RecoverableError),
    TestErrorType.PoplarLinkError: ("poplar_link_error", Error),
}


def _throwTestError(error_type: TestErrorType) -> None:
    """Raise an error of this kind, so that a program can test how it deals with it.

    Raises:
        Error: always; a RecoverableError or an UnrecoverableError for these kinds.
    """
    kind, error_class = _ERRORS[error_type]
    message = "-lfoo not found" if error_type is TestErrorType.PoplarLinkError else "an error for a test"
    error = error_of(kind, message, error_class, "throwTestError::topLevel / throwTestError::bottomLevel")
    if isinstance(error, RecoverableError):
        error.recovery_action = "FULL_RESET"
    raise error


def ipuHardwareVersion(num_ipus: int = 1) -> int:
    """Return the version of the IPUs; 0 where there are not as many."""
    return hardware.EMULATED_VERSION if hardware.ipuHardwareIsAvailable(num_ipus) else 0


def isCompilingWithDispatcher() -> bool:
    """Whether a forward pass on the device is under way."""
    return device_run.current is not None


def _validateOptions(options: Dict[str, Any]) -> None:
    validate_backend_options(options)
