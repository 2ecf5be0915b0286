"""Calls that the device's compiler refuses, and that its operators alone do not show."""

from __future__ import annotations

from typing import Any, Callable, Dict, Sequence, Tuple

import torch
import torch.nn.functional as F

from ..errors import backend_error
from .marks import is_on_device, is_stepped, mark_absent, mark_stepped
from .operator_arguments import NOT_INTERCEPTED

Arguments = Tuple[Any, ...]
Keywords = Dict[str, Any]
_POOLS_WITH_INDICES = {getattr(F, f"max_pool{n}d_with_indices") for n in (1, 2, 3)}
_SINGULAR_VALUES = {2: "2-norm", -2: "2-norm", "nuc": "nuclear norm"}


def require_compilable(func: Any, args: Arguments, kwargs: Keywords) -> None:
    """Refuse what cannot be compiled.

    Raises:
        Error: PopTorch's.
    """
    if func in _MATRIX_NORMS:
        order = _MATRIX_NORMS[func](*args, **kwargs)
        if order in _SINGULAR_VALUES:
            raise backend_error(f"Matrix {_SINGULAR_VALUES[order]} is not supported.")
    elif func is torch.Tensor.cpu or (func is torch.Tensor.to and "cpu" in _names_in(args[1:], kwargs)):
        if is_on_device(args[0]):
            raise backend_error(
                'Illegal move to CPU (via `.to("cpu")`) when using the dispatcher. Instead, return this output as an '
                "IPU tensor."
            )
    elif func in (torch.as_strided, torch.Tensor.as_strided, torch.Tensor.as_strided_):
        if is_on_device(args[0]):
            raise backend_error(NOT_INTERCEPTED)
    elif _changes_a_stepped_slice(func, args):
        raise backend_error("In-place modification of slices with step size other than 1 is not supported.")


def follow(func: Any, args: Arguments, results: Sequence[torch.Tensor]) -> None:
    """Mark results that later calls may not use."""
    if func in _POOLS_WITH_INDICES:
        mark_absent(results[1])
    elif _name(func) in ("__getitem__", "_getitem") and _has_step(args[1]):
        for result in results:
            mark_stepped(result)


def _changes_a_stepped_slice(func: Any, args: Arguments) -> bool:
    name = _name(func)
    if name == "__setitem__":
        return is_on_device(args[0]) and _has_step(args[1])
    is_named_in_place = name.endswith("_") and not name.endswith("__")  # mul_
    is_operator = name.startswith("__i") and name not in _NOT_IN_PLACE  # __imul__
    return (is_named_in_place or is_operator) and bool(args) and is_stepped(args[0])


_NOT_IN_PLACE = frozenset(["__init__", "__init_subclass__", "__index__", "__int__", "__iter__", "__invert__"])


def _name(func: Any) -> str:
    return str(getattr(func, "__name__", ""))


def _has_step(index: Any) -> bool:
    elements = index if isinstance(index, tuple) else (index,)
    return any(isinstance(element, slice) and element.step not in (None, 1) for element in elements)


def _names_in(args: Arguments, kwargs: Keywords) -> Sequence[str]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, str)]


def _of_matrix_norm(A: torch.Tensor, ord: Any = "fro", *args: Any, **kwargs: Any) -> Any:
    return ord


def _of_norm(A: torch.Tensor, ord: Any = None, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
    is_matrix = A.dim() == 2 if dim is None else isinstance(dim, (tuple, list)) and len(dim) == 2
    return ord if is_matrix else None


def _of_old_norm(input: torch.Tensor, p: Any = "fro", *args: Any, **kwargs: Any) -> Any:
    return p if p == "nuc" else None


_MATRIX_NORMS: Dict[Any, Callable[..., Any]] = {
    torch.linalg.matrix_norm: _of_matrix_norm,
    torch.linalg.norm: _of_norm,
    torch.norm: _of_old_norm,
    torch.Tensor.norm: _of_old_norm,
}
