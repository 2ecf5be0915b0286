"""Modules that a network holds in plain attributes, lists and dicts, where torch does not see them."""

from __future__ import annotations

from typing import Any, Iterator, List, Tuple

from torch import nn

_REGISTERED = ("_parameters", "_buffers", "_modules")


def plainly_held(module: nn.Module) -> Iterator[Tuple[str, nn.Module]]:
    """Yield (name, module) of what a module holds so: `blocks[0]` for the first of a list `blocks`."""
    for name, value in vars(module).items():
        if name not in _REGISTERED:
            yield from _inside(name, value, ())


def _inside(name: str, value: Any, around: Tuple[Any, ...]) -> Iterator[Tuple[str, nn.Module]]:
    if isinstance(value, nn.Module):
        yield name, value
    elif isinstance(value, (list, tuple, dict)) and not any(value is outer for outer in around):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from _inside(f"{name}[{key!r}]", item, (*around, value))


def replace_plainly_held(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put one module in the place of another wherever a module holds it so."""
    for name, value in list(vars(module).items()):
        if name not in _REGISTERED:
            vars(module)[name] = _replaced(value, old, new, [])


def _replaced(value: Any, old: nn.Module, new: nn.Module, around: List[Any]) -> Any:
    """Return what takes a value's place: lists and dicts are changed as they are, since others may hold them too."""
    if value is old:
        return new
    if any(value is outer for outer in around):
        return value
    inside = [*around, value]
    if isinstance(value, list):
        value[:] = [_replaced(item, old, new, inside) for item in value]
    elif isinstance(value, dict):
        for key, item in list(value.items()):
            value[key] = _replaced(item, old, new, inside)
    elif isinstance(value, tuple):
        items = [_replaced(item, old, new, inside) for item in value]
        if any(item is not other for item, other in zip(items, value)):
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
