"""Functions that a network's code calls and that no trace goes through, as one call each in a graph."""

from __future__ import annotations

import functools
import inspect
import traceback
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch.fx
from torch.fx.node import map_aggregate


class OpaqueFunction(NamedTuple):
    """A function of a module (a file) that is to be one call.

    Args:
        function: it.
        places: (a module's globals, name) of where it is called from.
    """

    function: Callable[..., Any]
    places: Tuple[Tuple[Dict[str, Any], str], ...]


def find_opaque_function(error: Exception, known: Sequence[OpaqueFunction]) -> Optional[OpaqueFunction]:
    """Return the innermost function through which an error of a trace came; None where there is none but those known.

    Those of torch and of this package are not meant.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        home = frame.f_globals
        function = home.get(frame.f_code.co_name)
        if not callable(function) or getattr(inspect.unwrap(function), "__code__", None) is not frame.f_code:
            continue
        if str(home.get("__name__")).startswith(("torch.", "normact.")):
            continue
        if any(function is other.function for other in known):
            continue
        scopes = {id(other.f_globals): other.f_globals for other in frames}
        places = [(scope, name) for scope in scopes.values() for name, value in scope.items() if value is function]
        return OpaqueFunction(function, tuple(places))
    return None


@contextmanager
def recorded_calls(tracer: torch.fx.Tracer, functions: Sequence[OpaqueFunction]) -> Iterator[None]:
    """While a tracer traces, functions that are called with symbolic values become calls in its graph."""
    before: List[Tuple[Dict[str, Any], str, Any]] = []
    try:
        for function, places in functions:
            for scope, name in places:
                before.append((scope, name, scope[name]))
                scope[name] = _recorded(tracer, function)
        yield
    finally:
        for scope, name, value in reversed(before):
            scope[name] = value


def _recorded(tracer: torch.fx.Tracer, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        symbolic: List[torch.fx.Proxy] = []
        map_aggregate(
            (args, kwargs), lambda value: symbolic.append(value) if isinstance(value, torch.fx.Proxy) else None
        )
        if symbolic:
            return tracer.create_proxy("call_function", function, args, kwargs)
        return function(*args, **kwargs)

    return call
