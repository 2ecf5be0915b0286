"""The operators normact::*: loading them, and their shapes for tracing (fake tensors)."""

from __future__ import annotations

import logging
import threading
from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor

from normact.kernels.differentiable import register_differentiable
from normact.kernels.memory_format import memory_format_of

logger = logging.getLogger(__name__)

# torch.library.register_fake came with 2.4.
OLDEST_TORCH = (2, 4)
# Triton's bfloat16 needs Ampere's instructions.
OLDEST_GPU = (8, 0)

_lock = threading.RLock()
_outcome: List[Optional[str]] = []
_cuda_outcome: List[Optional[str]] = []


def why_not_loaded() -> Optional[str]:
    """None when the operators are there, building and loading them at the first call; else the reason, logged once."""
    if not _outcome:
        with _lock:
            if not _outcome:
                reason = _load()
                if reason is not None:
                    logger.warning("fused kernels are off, the reference operations run: %s", reason)
                _outcome.append(reason)
    return _outcome[0]


def why_not_loaded_on_cuda() -> Optional[str]:
    """The same for CUDA tensors: Triton kernels below the operators and gradients of why_not_loaded."""
    if not _cuda_outcome:
        with _lock:
            if not _cuda_outcome:
                reason = why_not_loaded()
                if reason is None:
                    reason = _load_on_cuda()
                    if reason is not None:
                        logger.warning("fused GPU kernels are off, the reference operations run: %s", reason)
                _cuda_outcome.append(reason)
    return _cuda_outcome[0]


def has_fused_kernels() -> bool:
    """Whether the operators have been loaded by a layer of this process."""
    return _outcome == [None] and _cuda_outcome in ([], [None])


def _load() -> Optional[str]:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        return f"torch {torch.__version__} is older than {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}"
    from normact.kernels.cpu.build import build_library
    from normact.kernels.cpu.compiler import BuildError

    try:
        library = build_library()
    except BuildError as error:
        return str(error)
    try:
        torch.ops.load_library(str(library))
    except OSError as error:  # it is whole: its sum was compared
        return f"the built library does not load ({error}); remove {library.parent} to have it built again"
    _register_shapes()
    register_differentiable()
    return None


def _load_on_cuda() -> Optional[str]:
    try:
        from normact.kernels.cuda.operators import register
    except ImportError as error:
        return f"Triton cannot be imported ({error}); it comes with torch's CUDA builds, or: pip install triton"
    oldest = min(torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
    if oldest < OLDEST_GPU:
        return f"a GPU here has compute capability {oldest}; {OLDEST_GPU} or newer is needed"
    register()
    return None


def _like(x: Tensor) -> Tensor:
    """An output of the kernels."""
    return torch.empty_like(x, memory_format=memory_format_of(x))


def _register_shapes() -> None:
    """Shapes, types and strides of the results, for torch.compile and torch.export."""

    def norm_act(
        x: Tensor,
        weight: Optional[Tensor],
        bias: Optional[Tensor],
        proxy_mean: Optional[Tensor],
        proxy_inverse_std: Optional[Tensor],
        num_groups: int,
        strided: bool,
        activation: str,
        eps: float,
    ) -> Tuple[Tensor, Tensor]:
        return _like(x), x.new_empty((x.shape[0], num_groups, 2), dtype=torch.float64)

    def norm_act_again(
        x: Tensor,
        statistics: Tensor,
        weight: Optional[Tensor],
        bias: Optional[Tensor],
        proxy_mean: Optional[Tensor],
        proxy_inverse_std: Optional[Tensor],
        num_groups: int,
        strided: bool,
        activation: str,
    ) -> Tensor:
        return _like(x)

    def norm_act_backward(
        grad: Tensor,
        x: Tensor,
        statistics: Tensor,
        weight: Optional[Tensor],
        bias: Optional[Tensor],
        proxy_mean: Optional[Tensor],
        proxy_inverse_std: Optional[Tensor],
        num_groups: int,
        strided: bool,
        activation: str,
    ) -> Tuple[Tensor, Tensor]:
        return _like(x), x.new_empty((4, x.shape[1]), dtype=torch.float32)

    def proxy_statistics(
        activation: str,
        weight: Optional[Tensor],
        bias: Optional[Tensor],
        proxy_beta: Optional[Tensor],
        proxy_gamma: Optional[Tensor],
        eps: float,
    ) -> Tuple[Tensor, Tensor, Tensor]:
        given = next(t for t in (weight, bias, proxy_beta, proxy_gamma) if t is not None)
        row = given.new_empty((given.shape[0],), dtype=torch.float32)
        return row, torch.empty_like(row), row.new_empty((4, given.shape[0]))

    def proxy_statistics_backward(
        grad_mean: Optional[Tensor],
        grad_inverse_std: Optional[Tensor],
        slopes: Tensor,
        weight: Optional[Tensor],
        bias: Optional[Tensor],
        proxy_beta: Optional[Tensor],
        proxy_gamma: Optional[Tensor],
    ) -> Tensor:
        return torch.empty_like(slopes, memory_format=torch.contiguous_format)

    def batched(
        info: Any, in_dims: Tuple[Optional[int], ...], x: Tensor, *others: Any
    ) -> Tuple[Tuple[Tensor, Tensor], Tuple[int, int]]:
        """A batch of x alone is a larger batch; with parameters of its own, each member is computed by itself."""
        if in_dims[0] is not None and not any(dim is not None for dim in in_dims[1:]):
            stacked = x.movedim(in_dims[0], 0)
            results = torch.ops.normact.norm_act(stacked.flatten(0, 1), *others)
            return tuple(value.unflatten(0, stacked.shape[:2]) for value in results), (0, 0)
        members = [
            torch.ops.normact.norm_act(
                *(a if dim is None else a.select(dim, index) for a, dim in zip((x, *others), in_dims))
            )
            for index in range(info.batch_size)
        ]
        return tuple(torch.stack(values) for values in zip(*members)), (0, 0)

    torch.library.register_vmap("normact::norm_act", batched)
    for function in (norm_act, norm_act_again, norm_act_backward, proxy_statistics, proxy_statistics_backward):
        torch.library.register_fake(f"normact::{function.__name__}", function)
