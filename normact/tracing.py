"""Symbolic traces of modules, by torch.fx, without running hooks or changing the module."""

from __future__ import annotations

import inspect
import operator
import sys
from contextlib import contextmanager
from types import FrameType
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

import torch
import torch.fx
from torch import nn

from normact.assertions import is_asserted
from normact.known_activations import hooks_of, is_activation
from normact.norm_act import NormAct
from normact.opaque_functions import OpaqueFunction, find_opaque_function, recorded_calls
from normact.recognize import describe_norm

_DECORATORS = ("torch.utils._contextlib", "torch.amp.autocast_mode", "torch.autograd.grad_mode")
_REGISTERED = ("_parameters", "_buffers", "_modules")


class _Proxy(torch.fx.Proxy):
    """A symbolic value that records `x += y` as what it is; torch.fx's own makes it `x = x + y`."""

    def __iadd__(self, other: Any) -> torch.fx.Proxy:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: Any) -> torch.fx.Proxy:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: Any) -> torch.fx.Proxy:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: Any) -> torch.fx.Proxy:
        return self._in_place(operator.itruediv, other)

    def _in_place(self, operation: Callable[..., Any], other: Any) -> torch.fx.Proxy:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})


class FlowTracer(torch.fx.Tracer):
    """A tracer that knows, for each node, the path of the module whose forward made it; hooks do not run.

    Attributes:
        callers: node -> that path.
        contexts: names of the context managers that the traced code entered, or switched on by a function.
        entered: modules whose code is part of the graph.

    Args:
        is_leaf: whether to record a module (given with its path) as one call instead of entering it.
        is_opaque: whether to do so with a module beside torch's own, norms and activations.
        functions: which to record as one call; receives those through which the trace does not go.
    """

    # Else an operation on a buffer would run while tracing, once, instead of being recorded.
    proxy_buffer_attributes = True

    def __init__(
        self,
        is_leaf: Optional[Callable[[nn.Module, str], bool]] = None,
        is_opaque: Callable[[nn.Module], bool] = lambda module: False,
        functions: Optional[List[OpaqueFunction]] = None,
    ) -> None:
        super().__init__()
        self._functions = [] if functions is None else functions
        self._extra_leaf = is_leaf
        self._is_opaque = is_opaque
        self._stack: List[str] = [""]
        self.callers: Dict[torch.fx.Node, str] = {}
        self.contexts: Set[str] = set()
        self.entered: List[nn.Module] = []
        self._modes = _modes()

    def again(self) -> FlowTracer:
        """Return a tracer that records as one call what this one does."""
        return FlowTracer(self._extra_leaf, self._is_opaque, list(self._functions))

    def trace(self, root: Any, concrete_args: Optional[Dict[str, Any]] = None) -> torch.fx.Graph:
        if isinstance(root, nn.Module) and "forward" in vars(root):
            raise TypeError("its forward was replaced on the instance")
        while True:
            try:
                return self._traced(root, concrete_args)
            # Whatever the code raises when it meets a symbolic value.
            except Exception as error:
                function = find_opaque_function(error, self._functions)
                if function is None:
                    raise
                self._functions.append(function)
                self._stack, self.callers, self.contexts, self.entered = [""], {}, set(), []

    def _traced(self, root: Any, concrete_args: Optional[Dict[str, Any]]) -> torch.fx.Graph:
        watcher = sys.getprofile()
        with recorded_calls(self, self._functions):
            sys.setprofile(self._watch)
            try:
                return super().trace(root, concrete_args)
            finally:
                sys.setprofile(watcher)

    def _watch(self, frame: FrameType, event: str, _: Any) -> None:
        name, module = frame.f_code.co_name, frame.f_globals.get("__name__")
        if event == "call" and (name, module) == ("checkpoint", "torch.utils.checkpoint"):
            self.contexts.add(name)  # a trace holds what it computes, and not that it is computed again
        if event != "call" or name != "__enter__" or frame.f_back is None:
            return
        entered_by = str(frame.f_back.f_globals.get("__name__", ""))
        # Torch's own code enters contexts while it traces; its decorators do so for the code that they decorate.
        if not entered_by.startswith("torch.") or entered_by in _DECORATORS:
            manager = frame.f_locals.get("self")
            function = getattr(manager, "func", None)  # of a generator made a context manager
            self.contexts.add(getattr(function, "__name__", type(manager).__name__))

    def to_bool(self, obj: torch.fx.Proxy) -> bool:
        """Record what the code asserts as an assertion, and go on as if it held."""
        frame = sys._getframe(1)
        while frame.f_globals.get("__name__") == "torch.fx.proxy" and frame.f_back is not None:
            frame = frame.f_back
        if not is_asserted(frame):
            return super().to_bool(obj)
        words = f"an assertion in line {frame.f_lineno}, in {frame.f_code.co_name}, does not hold"
        self.create_proxy("call_function", torch._assert, (obj, words), {})
        return True

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, torch.jit.ScriptModule):
            return True
        if self._extra_leaf is not None:
            return self._extra_leaf(m, module_qualified_name)
        if describe_norm(m) is not None or isinstance(m, NormAct) or is_activation(m) or self._is_opaque(m):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            path = self.path_of_module(m)
        except NameError:  # made by the code itself, as a slice of an nn.Sequential: part of that code
            return m.forward(*args, **kwargs)
        self._stack.append(path)
        try:
            if self.is_leaf_module(m, path):
                return self.create_proxy("call_module", path, args, kwargs)
            self.entered.append(m)
            # Not `forward`, which would run the module's hooks on symbolic values.
            output = m.forward(*args, **kwargs)
        finally:
            self._stack.pop()
        return through_hooks(output) if hooks_of(m) and isinstance(output, torch.fx.Proxy) else output

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> torch.fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **options)
        if _modes() != self._modes:
            self.contexts.add("gradients off or on")
        # The innermost path of a module call is the called module itself.
        self.callers[node] = self._stack[-2] if kind == "call_module" else self._stack[-1]
        return node


@torch.fx.wrap
def through_hooks(output: Any) -> Any:
    """Return a mark in a graph: a module's hooks stand between its forward's output and what follows."""
    return output


def _modes() -> Tuple[bool, bool]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def optional_arguments(module: nn.Module) -> List[str]:
    """Return names of the arguments with defaults of a module's forward."""
    return [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.default is not inspect.Parameter.empty or parameter.kind is inspect.Parameter.VAR_KEYWORD
    ]


@contextmanager
def training_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Put every module of the model in one mode, and back in its own afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def kept_attributes(model: nn.Module, changed: Optional[List[str]] = None) -> Iterator[None]:
    """Afterwards every module has the attributes that it had before.

    Args:
        model: any network, whose code is to be traced.
        changed: receives the names of the attributes that had to be set back.
    """
    before = [
        (module, {key: dict(value) if key in _REGISTERED else value for key, value in vars(module).items()})
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)  # it looks its own attributes up anew
    ]
    try:
        yield
    finally:
        for module, attributes in before:
            for key in list(vars(module)):
                if key not in attributes:
                    del vars(module)[key]
                    _note(changed, key)
            for key, value in attributes.items():
                if key in _REGISTERED:
                    registered = vars(module)[key]
                    if {k: id(v) for k, v in registered.items()} != {k: id(v) for k, v in value.items()}:
                        _note(changed, *(set(registered) ^ set(value) or set(value)))
                        registered.clear()
                        registered.update(value)
                elif vars(module).get(key) is not value:
                    vars(module)[key] = value
                    _note(changed, key)


def _note(changed: Optional[List[str]], *names: str) -> None:
    if changed is not None:
        changed.extend(names)
