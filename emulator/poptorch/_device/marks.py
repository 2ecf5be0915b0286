"""Marks on tensor objects: which live on the device, which of them are known only when it runs, and the like."""

from __future__ import annotations

from typing import Any

import torch

_ON_DEVICE = "_poptorch_on_device"
_VARIABLE = "_poptorch_variable"
_STEPPED = "_poptorch_stepped"
_ABSENT = "_poptorch_absent"


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


def mark_stepped(tensor: torch.Tensor) -> torch.Tensor:
    """Note that it is a slice which leaves rows out."""
    tensor.__dict__[_STEPPED] = True
    return tensor


def is_stepped(value: Any) -> bool:
    """Whether the value is a tensor that mark_stepped() was called for."""
    return isinstance(value, torch.Tensor) and _STEPPED in value.__dict__


def mark_absent(tensor: torch.Tensor) -> torch.Tensor:
    """Note that the device does not compute it, whatever torch does."""
    tensor.__dict__[_ABSENT] = True
    return tensor


def is_absent(tensor: torch.Tensor) -> bool:
    """Whether mark_absent() was called."""
    return _ABSENT in tensor.__dict__
