"""Marks on tensor objects: which live on the device, and which of them are known only when it runs."""

from __future__ import annotations

from typing import Any

import torch

_ON_DEVICE = "_poptorch_on_device"
_VARIABLE = "_poptorch_variable"


def mark_on_device(tensor: torch.Tensor) -> torch.Tensor:
    """Note that this tensor object lives on the device."""
    tensor.__dict__[_ON_DEVICE] = True
    return tensor


def is_on_device(value: Any) -> bool:
    """Whether the value is a tensor that was computed on, or sent to, the device."""
    return isinstance(value, torch.Tensor) and _ON_DEVICE in value.__dict__


def mark_variable(tensor: torch.Tensor) -> torch.Tensor:
    """Note that its values are an input, a weight or random, or computed from such: no constant of the graph."""
    tensor.__dict__[_VARIABLE] = True
    return tensor


def is_variable(tensor: torch.Tensor) -> bool:
    """Whether mark_variable() was called."""
    return _VARIABLE in tensor.__dict__
