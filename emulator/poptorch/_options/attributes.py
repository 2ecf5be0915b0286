"""Attributes of operations: accepted, and without effect."""

from __future__ import annotations

import copy
from typing import Any, Dict


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
