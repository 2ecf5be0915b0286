"""Slices that begin where a tensor says."""

from __future__ import annotations

from typing import Tuple

import torch

from .._device import device_run
from ..errors import backend_error, createPoptorchError
from .argument_checks import require_int, require_tensor


def dynamic_slice(tensor: torch.Tensor, dim: int, start: torch.Tensor, size: int, step: int) -> torch.Tensor:
    """tensor[start : start + size : step] along one dimension, where start is a tensor.

    Raises:
        Error: a size that does not divide the dimension; a size or step below 1.
    """
    require_tensor(tensor, "tensor")
    require_tensor(start, "start")
    for name, value in (("Dimension", dim), ("Size", size), ("Step", step)):
        require_int(value, name)
    if device_run.current is None:
        return tensor[_part(tensor, dim, int(start), size, step)]
    _check_size(size)
    if step < 1:
        raise backend_error("Slicing step must be at least 1")
    if tensor.shape[dim] % size != 0:
        raise backend_error(
            f"The size of the slice ({size}) must be a factor of the slicing dimension ({tensor.shape[dim]})."
        )
    rows = _rows(start, torch.arange(0, size, step, device="cpu"), tensor.shape[dim])
    return device_run.as_one_operator(torch.index_select, tensor, dim, rows)


def dynamic_update(input: torch.Tensor, src: torch.Tensor, dim: int, start: torch.Tensor, size: int) -> torch.Tensor:
    """Return a copy of input with input[start : start + size] along one dimension replaced by src.

    Raises:
        Error: a size below 1, or tensors that do not go together.
    """
    for name, tensor in (("input", input), ("start", start), ("src", src)):
        require_tensor(tensor, name)
    for name, value in (("Dimension", dim), ("Size", size)):
        require_int(value, name)
    if input.dim() != src.dim():
        raise createPoptorchError(
            f"input and src tensors must have same dimensionality. ({input.dim()}) vs ({src.dim()})"
        )
    if input.dtype != src.dtype:
        dtypes = [_device_dtype(tensor) for tensor in (input, src)]
        raise createPoptorchError(f"input and src tensor must have same dtype. ({dtypes[0]} vs {dtypes[1]})")
    if device_run.current is None:
        updated = input.clone()
        updated[_part(input, dim, int(start), size, 1)] = src
        return updated
    _check_size(size)
    rows = _rows(start, torch.arange(size, device="cpu"), input.shape[dim])
    return device_run.as_one_operator(torch.index_copy, input, dim, rows, src)


def _part(tensor: torch.Tensor, dim: int, start: int, size: int, step: int) -> Tuple[slice, ...]:
    """Return the index of a slice on the host, where it is torch's."""
    return (slice(None),) * (dim % tensor.dim()) + (slice(start, start + size, step),)


def _device_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.int32 if device_run.current is not None and tensor.dtype == torch.int64 else tensor.dtype


def _check_size(size: int) -> None:
    if size == 0:
        raise backend_error("The start and end of a slice must be different.")
    if size < 0:
        raise backend_error("Taking a slice of a tensor with the end less than the start is not supported.")


def _rows(start: torch.Tensor, offsets: torch.Tensor, length: int) -> torch.Tensor:
    """Return the positions of a slice.

    On the device one that begins outside begins at 0, and after the last row comes row 0. A model is compiled
    on any values, so that no start is an error. (poplibs, popops/codelets/DynamicSlice1D.cpp.)
    """
    first = start.reshape(1).long()
    first = torch.where((first < 0) | (first >= length), torch.zeros_like(first), first)
    return (first + offsets) % length
