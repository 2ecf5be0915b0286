"""Marks on tensor objects: which live on the device, which of them are known only when it runs, and the like."""

from __future__ import annotations

from typing import Any

import torch

_ON_DEVICE = "_poptorch_on_device"
_VARIABLE = "_poptorch_variable"
_STEPPED = "_poptorch_stepped"
_ABSENT = "_poptorch_absent"


def _mark(tensor: torch.Tensor, mark: str) -> torch.Tensor:
    tensor.__dict__[mark] = True
    return tensor


def _has(value: Any, mark: str) -> bool:
    return isinstance(value, torch.Tensor) and mark in value.__dict__


def mark_on_device(tensor: torch.Tensor) -> torch.Tensor:
    """Note that this tensor object lives on the device."""
    return _mark(tensor, _ON_DEVICE)


def is_on_device(value: Any) -> bool:
    """Whether the value is a tensor that was computed on, or sent to, the device."""
    return _has(value, _ON_DEVICE)


def mark_variable(tensor: torch.Tensor) -> torch.Tensor:
    """Note that its values are an input, a weight or random, or computed from such: no constant of the graph."""
    return _mark(tensor, _VARIABLE)


def is_variable(value: Any) -> bool:
    """Whether the value is a tensor that mark_variable() was called for."""
    return _has(value, _VARIABLE)


def mark_stepped(tensor: torch.Tensor) -> torch.Tensor:
    """Note that it is a slice which leaves rows out."""
    return _mark(tensor, _STEPPED)


def is_stepped(value: Any) -> bool:
    """Whether the value is a tensor that mark_stepped() was called for."""
    return _has(value, _STEPPED)


def mark_absent(tensor: torch.Tensor) -> torch.Tensor:
    """Note that the device does not compute it, whatever torch does."""
    return _mark(tensor, _ABSENT)


def is_absent(value: Any) -> bool:
    """Whether the value is a tensor that mark_absent() was called for."""
    return _has(value, _ABSENT)
