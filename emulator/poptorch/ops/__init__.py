"""Functions that a model calls in its forward pass; most only pass their tensors on, since they steer the compiler."""

from __future__ import annotations

from typing import Any, List, Optional, Union

import torch

from .._device import device_run
from .._device.marks import mark_on_device
from ..enums import OverlapMode
from ..errors import createPoptorchError
from ..structures import rebuilt, tensors_in
from .argument_checks import require_tensor
from .blocks import BeginBlock, Block, BlockFunction, LegacyBeginBlockFn, removeBlocks
from .control_flow import cond, for_loop
from .dynamic_slices import dynamic_slice, dynamic_update
from .host_ops import CPU, custom_op, ipu_print_tensor
from .multi_conv import MultiConv
from .name_scopes import NameScope
from .serialized_matmul import serializedMatMul

__all__ = [
    "BeginBlock",
    "Block",
    "BlockFunction",
    "CPU",
    "LegacyBeginBlockFn",
    "MultiConv",
    "NameScope",
    "cond",
    "ctc_beam_search_decoder",
    "custom_op",
    "dynamic_slice",
    "dynamic_update",
    "for_loop",
    "fps",
    "identity_loss",
    "ipu_print_tensor",
    "nearest",
    "nop",
    "recomputationCheckpoint",
    "removeBlocks",
    "serializedMatMul",
    "set_available_memory",
    "set_overlap_for_input",
    "set_overlap_for_output",
]


def identity_loss(x: torch.Tensor, reduction: str) -> torch.Tensor:
    """Mark a tensor as a loss, after reducing it by "mean", "sum" or "none".

    A training model minimizes its one final marked loss; one that is not a scalar back-propagates ones.
    """
    if reduction not in ("sum", "mean", "none"):
        raise AssertionError(f'Unsupported reduction type {reduction!r}; use "sum", "mean" or "none"')
    run = device_run.current
    if reduction == "none":
        loss = x if run is None else x.clone()  # a mark of its own, apart from x
    elif reduction == "sum":
        loss = x.sum()
    else:
        loss = x.mean()
    if run is not None:
        run.losses.append(loss)
    return loss


def nop(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor itself."""
    require_tensor(tensor, "tensor")
    return tensor


def set_available_memory(tensor: torch.Tensor, available_memory_proportion: float) -> torch.Tensor:
    """Return the tensor itself; on an IPU, its operation may use this share of memory for temporary data."""
    require_tensor(tensor, "tensor")
    return tensor


def recomputationCheckpoint(*tensors: Any) -> Any:
    """Return the tensors themselves; on an IPU, they are kept for the backward pass instead of being computed again."""
    if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)):
        kept = recomputationCheckpoint(*tensors[0])
        return type(tensors[0])(kept if isinstance(kept, tuple) else (kept,))
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise ValueError("All inputs must be tensors")
    if device_run.current is not None and device_run.current.memory is not None:
        device_run.current.memory.note_checkpoint(tensors)
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def set_overlap_for_input(input_tensors: Any, mode: OverlapMode) -> Any:
    """Return the inputs themselves; on an IPU, fetched while it computes."""
    return _overlapped(input_tensors, mode, "input")


def set_overlap_for_output(output_tensors: Any, mode: OverlapMode) -> Any:
    """Return the outputs themselves; on an IPU, sent while it computes."""
    return _overlapped(output_tensors, mode, "output")


def _overlapped(structure: Any, mode: OverlapMode, direction: str) -> Any:
    if not isinstance(structure, (torch.Tensor, dict, list, tuple)):
        raise createPoptorchError(f"You may only set overlap for tensors and containers of them, not {type(structure)}")
    run = device_run.current
    if run is None or not run.is_tracing:
        return rebuilt(structure, tensors_in(structure))
    marked = [run.overlap.mark(direction, tensor, mode) for tensor in tensors_in(structure)]
    return rebuilt(structure, [mark_on_device(tensor) for tensor in marked])


def _no_emulation(name: str) -> Exception:
    return createPoptorchError(f"poptorch.{name} runs only on an IPU: the emulator has no implementation of it")


def ctc_beam_search_decoder(
    probs: torch.Tensor, lengths: torch.Tensor, blank: int = 0, beam_width: int = 100, top_paths: int = 1
) -> List[torch.Tensor]:
    """Refused: not emulated."""
    require_tensor(probs, "probs")
    require_tensor(lengths, "lengths")
    raise _no_emulation("ctc_beam_search_decoder")


def fps(src: torch.Tensor, ptr: List[int], ratio: float = 0.5, random_start: bool = False) -> torch.Tensor:
    """Refused: not emulated."""
    require_tensor(src, "src")
    raise _no_emulation("fps")


def nearest(
    x: torch.Tensor,
    y: torch.Tensor,
    batch_x: Optional[Union[List[int], torch.Tensor]] = None,
    batch_y: Optional[Union[List[int], torch.Tensor]] = None,
) -> torch.Tensor:
    """Refused: not emulated."""
    require_tensor(x, "x")
    require_tensor(y, "y")
    raise _no_emulation("nearest")
