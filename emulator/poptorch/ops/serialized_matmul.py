"""Matrix products that an IPU computes in parts."""

from __future__ import annotations

import math

import torch

from .._device import device_run
from ..enums import MatMulSerializationMode
from ..errors import popart_error


def serializedMatMul(
    lhs: torch.Tensor,
    rhs: torch.Tensor,
    mode: MatMulSerializationMode,
    factor: int = 0,
    keep_precision: bool = False,
) -> torch.Tensor:
    """Matrix product; on an IPU, computed in `factor` parts.

    Raises:
        AssertionError: an argument of another type.
        Error: on the device, a factor that does not divide the dimension which is cut.
    """
    if not (isinstance(mode, MatMulSerializationMode) and isinstance(factor, int) and isinstance(keep_precision, bool)):
        raise AssertionError(f"expected MatMulSerializationMode, int, bool; got {(mode, factor, keep_precision)}")
    if device_run.current is not None and mode != MatMulSerializationMode.Disabled:
        _check_factor(lhs, rhs, mode, factor)
    return torch.matmul(lhs, rhs)


def _check_factor(lhs: torch.Tensor, rhs: torch.Tensor, mode: MatMulSerializationMode, factor: int) -> None:
    if factor == 0:
        raise popart_error("Invalid serialisation factor 0. Serialisation factor must be a non-zero positive integer.")
    if mode == MatMulSerializationMode.InputChannels:
        # Batches of a product with one matrix are rows of it.
        name, size = "input channels dim", math.prod(lhs.shape[:-1]) if rhs.dim() == 2 else lhs.shape[-2]
    elif mode == MatMulSerializationMode.ReducingDim:
        name, size = "reducing dimension", lhs.shape[-1]
    else:
        name, size = "output channels dim", rhs.shape[-1]
    if size % factor:
        raise popart_error(
            f"Invalid serialisation factor {factor} for {name} {size}. {name} should be a multiple of the "
            "serialisation factor"
        )
