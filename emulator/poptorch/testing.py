"""Comparing results."""

from __future__ import annotations

from typing import Any

import torch


def allclose(ref: Any, other: Any) -> bool:
    """Whether two tensors, or two lists or tuples of them, have the same shapes and nearly the same values."""
    if isinstance(ref, (list, tuple)):
        return len(ref) == len(other) and all(allclose(a, b) for a, b in zip(ref, other))
    return bool(ref.shape == other.shape and torch.allclose(ref, other))
