"""The exceptions of the emulator, and the two forms in which PopTorch words them."""

from __future__ import annotations

from typing import Type


class Error(Exception):
    """Any error of PopTorch; `type`, `message` and `location` repeat the parts of its text."""

    type: str = "poptorch_py_error"
    message: str = ""
    location: str = ""


class RecoverableError(Error):
    """The device failed in a way that a restart of the program cures."""

    recovery_action: str = ""


class UnrecoverableError(Error):
    """The device failed for good."""


def createPoptorchError(msg: str) -> Error:
    """Build the Error that the Python layer raises: 'poptorch_py_error': msg."""
    return error_of("poptorch_py_error", msg)


def backend_error(message: str) -> Error:
    """Build the Error that the compiled layer raises: 'poptorch_cpp_error': message."""
    return error_of("poptorch_cpp_error", message)


def popart_error(message: str) -> Error:
    """Build the Error that PopART raises below PopTorch: 'popart_exception': message."""
    return error_of("popart_exception", message)


def error_of(kind: str, message: str, error_class: Type[Error] = Error, location: str = "") -> Error:
    """Build an Error whose text names its kind, and where it happened if that is known."""
    error = error_class(f"'{kind}': {message}" + (f" ({location})" if location else ""))
    error.type = kind
    error.message = message
    error.location = location
    return error


NOT_COMPILED = "Model has not been compiled or has been destroyed."
