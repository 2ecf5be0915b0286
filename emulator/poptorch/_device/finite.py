"""Floating point exceptions: a result that is not a number, or overflows, ends the program."""

from __future__ import annotations

from typing import Iterable

import torch

from ..errors import backend_error


def require_finite(tensors: Iterable[torch.Tensor]) -> None:
    """Check values.

    Raises:
        Error: one of them is not a finite number.
    """
    with torch._C.DisableTorchFunction():
        for tensor in tensors:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor.detach()).all()):
                raise backend_error("Floating point exception: a result is not a number or overflows")
