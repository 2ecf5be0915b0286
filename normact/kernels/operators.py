"""The operators normact::*: loading them, and their shapes for tracing (fake tensors)."""

from __future__ import annotations

import inspect
import logging
import threading
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

import torch
from torch import Tensor

from normact.kernels.memory_format import memory_format_of
from normact.kernels.transforms import register_transforms

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
    """Return the same for CUDA tensors: Triton kernels below the operators and gradients of why_not_loaded."""
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
    from normact.kernels.cpu.build import torch_version
    from normact.kernels.cpu.compiler import BuildError
    from normact.kernels.cpu.streaming import stream_from, streamed_bytes

    if torch_version() < OLDEST_TORCH:
        return f"torch {torch.__version__} is older than {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}"
    try:
        size = streamed_bytes()
        library = _load_prebuilt() or _load_built()
    except BuildError as error:
        return str(error)
    stream_from(library, size)
    _register_shapes()
    register_transforms()
    return None


def _load_prebuilt() -> Optional[Path]:
    """Load the library that a wheel brings; None where there is none for this machine."""
    from normact.kernels.cpu.prebuilt import prebuilt_library

    library = prebuilt_library()
    if library is None:
        return None
    try:
        from normact.kernels.gradients import register_gradients

        torch.ops.load_library(str(library))
    except (ImportError, OSError) as error:  # another torch than those it was tried with, or an older C library
        logger.warning("the wheel's kernels do not load here (%s), so they are built", error)
        return None
    logger.info("kernels of the wheel: %s", library.name)
    register_gradients()
    return library


def _load_built() -> Path:
    """Build the library if it is not there, and load it.

    Raises:
        BuildError: it cannot be built, or does not load.
    """
    from normact.kernels.cpu.build import build_library
    from normact.kernels.cpu.compiler import BuildError

    library = build_library()
    try:
        torch.ops.load_library(str(library))
    except OSError as error:  # it is whole: its sum was compared
        raise BuildError(
            f"the built library does not load ({error}); remove {library.parent} to have it built again"
        ) from error
    return library


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
    """Return an output of the kernels."""
    return torch.empty_like(x, memory_format=memory_format_of(x))


def _register_shapes() -> None:
    """Shapes, types and strides of the results, for torch.compile and torch.export.

    Each function names the arguments that it looks at as the operator's schema does, in csrc/operators.cpp.
    """

    def norm_act(x: Tensor, num_groups: int) -> Tuple[Tensor, Tensor]:
        return _like(x), x.new_empty((x.shape[0], num_groups, 2), dtype=torch.float64)

    def norm_act_again(x: Tensor) -> Tensor:
        return _like(x)

    def norm_act_backward(x: Tensor) -> Tuple[Tensor, Tensor]:
        return _like(x), x.new_empty((4, x.shape[1]), dtype=torch.float32)

    def proxy_statistics(
        weight: Optional[Tensor], bias: Optional[Tensor], proxy_beta: Optional[Tensor], proxy_gamma: Optional[Tensor]
    ) -> Tuple[Tensor, Tensor, Tensor]:
        given = next(t for t in (weight, bias, proxy_beta, proxy_gamma) if t is not None)
        row = given.new_empty((given.shape[0],), dtype=torch.float32)
        return row, torch.empty_like(row), row.new_empty((4, given.shape[0]))

    def proxy_statistics_backward(slopes: Tensor) -> Tensor:
        return torch.empty_like(slopes, memory_format=torch.contiguous_format)

    for function in (norm_act, norm_act_again, norm_act_backward, proxy_statistics, proxy_statistics_backward):
        torch.library.register_fake(f"normact::{function.__name__}", _of_all_arguments(function))


def _of_all_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` as called with all arguments of the operator of its name: it gets those that it names."""
    schema = getattr(torch.ops.normact, function.__name__).default._schema
    wanted = inspect.signature(function).parameters
    places = {argument.name: place for place, argument in enumerate(schema.arguments) if argument.name in wanted}

    def called(*arguments: Any) -> Any:
        return function(**{name: arguments[place] for name, place in places.items()})

    return called
