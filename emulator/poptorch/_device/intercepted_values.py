"""What cannot be compiled because it needs values: results shaped by them, and reading them on the host."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, Tuple

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from ..errors import backend_error
from .marks import is_on_device

Arguments = Tuple[Any, ...]
Keywords = Dict[str, Any]


def require_no_values(func: Callable[..., Any], args: Arguments, kwargs: Keywords) -> None:
    """Refuse a call whose result's shape depends on values of the device, or that reads them on the host.

    Raises:
        Error: with what can be done instead.
    """
    if func in _READING:
        if _is_any_on_device(args, kwargs):
            _refuse_read(func)
    elif func is torch.Tensor.__format__:  # reads the number of a tensor without dimensions that is not a parameter
        if is_on_device(args[0]) and args[0].dim() == 0 and not isinstance(args[0], torch.nn.Parameter):
            _refuse_read(func)
    elif func in _OF_NUMBERS:
        if _is_any_on_device(args, {name: value for name, value in kwargs.items() if name != "out"}):
            _refuse_read(func)
    elif func in _SHAPED_BY_VALUES:
        if _is_any_on_device(args, kwargs) and _SHAPED_BY_VALUES[func](*args, **kwargs):
            _refuse_shape(func)
    elif getattr(func, "__name__", "") in ("__getitem__", "__setitem__"):
        _require_static_index(func, args[1])


def _require_static_index(func: Callable[..., Any], index: Any) -> None:
    """Masks select by value, but may be assigned to; single positions and bounds of slices are read on the host."""
    for element in _elements([index]):
        if is_on_device(element):
            if element.dtype in (torch.bool, torch.uint8):
                if func.__name__ == "__getitem__":
                    text: Any = f"aten.index.Tensor is unsupported {_UNKNOWN_SHAPE}"  # torch puts the operator here
                    raise DynamicOutputShapeException(text)
            elif element.dim() == 0:
                _refuse_read(func)


def _is_any_on_device(args: Arguments, kwargs: Keywords) -> bool:
    return any(is_on_device(value) for value in _elements([*args, *kwargs.values()]))


def _elements(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (tuple, list)):
            yield from _elements(value)
        elif isinstance(value, slice):
            yield from (value.start, value.stop, value.step)
        else:
            yield value


def _refuse_read(func: Callable[..., Any]) -> None:
    raise backend_error(
        f"aten::item is only supported in eager mode, but {func.__name__}() was called on a tensor of a model that is "
        "compiled: its value is not known while the graph is built. Compute with the tensor instead: index_select() "
        "or poptorch.dynamic_slice() where it is a position"
    )


def _refuse_shape(func: Callable[..., Any]) -> None:
    name = func.__name__.strip("_")
    raise backend_error(_LENGTHS.get(name, f"Operations using aten::{name} are unsupported {_UNKNOWN_SHAPE}"))


_LENGTHS = {
    "bincount": "Bincount `minlength` must be specified and must be a constant. On the IPU MK2 platform the minimum "
    "length is also the maximum length",
    "one_hot": "OneHot num classes must be specified and must be constant.",
}
_UNKNOWN_SHAPE = (
    "where the values of a tensor decide the shape of the result: the shapes of a compiled graph are fixed. Instead of "
    "selecting by a mask keep all elements: torch.where(mask, x, other), x * mask, x[mask] = value"
)
_READING = {
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.numpy,
    torch.Tensor.__bool__,
    torch.Tensor.__float__,
    torch.Tensor.__int__,
    torch.Tensor.__index__,
    torch.Tensor.__array__,
    torch.Tensor.__contains__,
    torch.is_nonzero,
    torch.allclose,
    torch.Tensor.allclose,
    torch.equal,
    torch.Tensor.equal,
}
# Factories whose arguments are all numbers of the host.
_OF_NUMBERS = {
    getattr(torch, name)
    for name in "arange empty full linspace logspace ones rand randint randn randperm range zeros".split()
}


def _always(*args: Any, **kwargs: Any) -> bool:
    return True


def _where_of_a_mask_alone(*args: Any, **kwargs: Any) -> bool:
    return len(args) + len(kwargs) == 1


def _bins_of_the_largest(input: Any, weights: Any = None, minlength: int = 0) -> bool:
    return minlength <= 0


def _classes_of_the_largest(input: Any, num_classes: int = -1) -> bool:
    return num_classes < 0


_SHAPED_BY_VALUES: Dict[Any, Callable[..., bool]] = {
    **{
        getattr(space, name): _always
        for space in (torch, torch.Tensor)
        for name in "nonzero argwhere masked_select unique unique_consecutive".split()
    },
    torch.where: _where_of_a_mask_alone,
    torch.bincount: _bins_of_the_largest,
    torch.Tensor.bincount: _bins_of_the_largest,
    F.one_hot: _classes_of_the_largest,
}
