"""Names and attributes of operations: scopes name tensors (see operation_names); attributes have no effect."""

from __future__ import annotations

import copy
from typing import Any, Dict

from . import device_run


class Attribute:
    """Context in which operations carry attributes: Attribute(__outputs_type={...})."""

    _current_attrs: Dict[str, Dict[str, Any]] = {}

    def __init__(self, **kwargs: Any) -> None:
        self._kwargs = kwargs
        self._saved: Dict[str, Dict[str, Any]] = {}

    def __enter__(self) -> None:
        self._saved = copy.deepcopy(Attribute._current_attrs)
        for attribute, values in self._kwargs.items():
            Attribute._current_attrs.setdefault(attribute, {}).update(values)

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        Attribute._current_attrs = self._saved


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
