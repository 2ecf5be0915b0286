"""Scopes that name the tensors computed in them (see _device/operation_names.py)."""

from __future__ import annotations

from typing import Any

from .._device import device_run


class NameScope:
    """Context in which operations' names start with `name`."""

    def __init__(self, name: str) -> None:
        if not isinstance(name, str):
            raise AssertionError(f"Parameter to NameScope must be a string, got {name!r}")
        self.name = name

    def __enter__(self) -> None:
        if device_run.current is not None and device_run.current.names is not None:
            device_run.current.names.enter(self.name)

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        if device_run.current is not None and device_run.current.names is not None:
            device_run.current.names.leave()
