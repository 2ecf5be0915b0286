"""Modules that a network holds in plain attributes, lists and dicts, where torch does not see them."""

from __future__ import annotations

import collections
import functools
import inspect
import weakref
from types import FunctionType, MethodType, ModuleType
from typing import Any, Dict, Iterator, List, Tuple

from torch import Tensor, nn

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


def held_out_of_reach(model: nn.Module) -> Dict[nn.Module, str]:
    """Return modules that the network holds where no other can take their place, and words for where that is.

    That is in a bound method, functools.partial, closure, set, weak reference or object that is no module.
    """
    found: Dict[nn.Module, str] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in _REGISTERED:
                where = f"{path}.{name}" if path else name
                words = f"{where} holds it too, where no other module can take its place"
                found.update((held, words) for held in _out_of_reach(value, False, {}) if held is not module)
    return found


def _out_of_reach(value: Any, is_beyond: bool, seen: Dict[int, Any]) -> Iterator[nn.Module]:
    """Yield the modules inside a value that are held by more than lists, tuples and dicts."""
    if id(value) in seen or isinstance(value, (type, ModuleType, Tensor, str, bytes, int, float)):
        return
    seen[id(value)] = value
    if isinstance(value, nn.Module):
        if is_beyond:
            yield value
        return
    inside: List[Any] = []
    if isinstance(value, (list, tuple, dict)):
        inside += value.values() if isinstance(value, dict) else value
    else:
        is_beyond = True
        inside += _held_by(value)
    for item in inside:
        yield from _out_of_reach(item, is_beyond, seen)


def _held_by(value: Any) -> Iterator[Any]:
    if isinstance(value, (set, frozenset, collections.deque)):
        yield from value
    elif isinstance(value, MethodType):
        yield value.__self__
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, FunctionType):
        yield from inspect.getclosurevars(value).nonlocals.values()
        yield from value.__defaults__ or ()
    elif isinstance(value, weakref.ref):
        yield value()
    else:
        yield from getattr(value, "__dict__", {}).values()


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


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module, holders: List[nn.Module]) -> nn.Module:
    """Put one module in the place of another under all its names."""
    if model is old:
        return new
    for parent in holders:
        replace_plainly_held(parent, old, new)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children leaves out a module's second name
            if child is old:
                setattr(parent, name, new)
    return model
