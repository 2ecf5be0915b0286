"""Find what follows each norm of a network, by symbolic tracing."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch.fx
from torch import nn

from normact.norm_act import NormAct
from normact.recognize import activation_of_call, activation_of_module, describe_norm, is_pass_through


class Consumer(NamedTuple):
    """What takes a norm's output.

    Args:
        activation: name of the activation that follows; None where none does.
        reason: why there is none; empty where there is one.
        module: the activation's module; None for a function.
        module_calls: how often that module is called in the traced part.
        caller: path of the module whose forward applies the activation.
        traced: path of the traced part.
    """

    activation: Optional[str]
    reason: str = ""
    module: Optional[nn.Module] = None
    module_calls: int = 0
    caller: str = ""
    traced: str = ""


class FlowTracer(torch.fx.Tracer):
    """A tracer that knows, for each node, the path of the module whose forward made it.

    Args:
        is_leaf: whether to record a module (given with its path) as one call instead of entering it.
    """

    def __init__(self, is_leaf: Optional[Callable[[nn.Module, str], bool]] = None) -> None:
        super().__init__()
        self._extra_leaf = is_leaf
        self._stack: List[str] = [""]
        self.callers: Dict[torch.fx.Node, str] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self._extra_leaf is not None:
            return self._extra_leaf(m, module_qualified_name)
        if describe_norm(m) is not None or isinstance(m, NormAct) or activation_of_module(m) is not None:
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._stack.append(self.path_of_module(m))
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self._stack.pop()

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> torch.fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **options)
        # The innermost path of a module call is the called module itself.
        self.callers[node] = self._stack[-2] if kind == "call_module" else self._stack[-1]
        return node


def optional_arguments(module: nn.Module) -> List[str]:
    """Names of the arguments with defaults of a module's forward."""
    return [
        name
        for name, parameter in inspect.signature(module.forward).parameters.items()
        if parameter.default is not inspect.Parameter.empty or parameter.kind is inspect.Parameter.VAR_KEYWORD
    ]


@contextmanager
def training_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Every module of the model in one mode; afterwards each in its own again."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def find_consumers(model: nn.Module) -> Tuple[Dict[nn.Module, Consumer], List[Tuple[str, str]]]:
    """What follows each norm that a trace reaches.

    Where the network cannot be traced as a whole, each of its children is traced by itself, and so on
    down; a norm whose output leaves the traced part then has an unknown consumer.

    Returns:
        The consumer of each norm reached, and (path, error) of every failed trace.
    """
    consumers: Dict[nn.Module, Consumer] = {}
    failures: List[Tuple[str, str]] = []
    with training_mode(model, True):
        _trace_part(model, "", consumers, failures)
    return consumers, failures


def _trace_part(
    part: nn.Module, path: str, consumers: Dict[nn.Module, Consumer], failures: List[Tuple[str, str]]
) -> None:
    if not any(describe_norm(module) for module in part.modules()):
        return
    tracer = FlowTracer()
    try:
        defaults = _defaults(part, path)
        graph = tracer.trace(part, defaults or None)
    # Whatever the network's own code raises when it meets a symbolic value.
    except Exception as error:
        if describe_norm(part) is None:
            if not isinstance(part, (nn.ModuleList, nn.ModuleDict)):  # these have no forward to fail
                failures.append((path, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
            for name, child in part.named_children():
                _trace_part(child, f"{path}.{name}" if path else name, consumers, failures)
        return
    modules = dict(part.named_modules())
    calls: Dict[nn.Module, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[modules[node.target]] = calls.get(modules[node.target], 0) + 1
    for node in graph.nodes:
        module = modules.get(node.target) if node.op == "call_module" else None
        if module is None or describe_norm(module) is None:
            continue
        if calls[module] > 1:
            consumers[module] = Consumer(None, f"called at {calls[module]} places")
        else:
            consumers[module] = _consumer(node, modules=modules, calls=calls, callers=tracer.callers, path=path)


def _defaults(part: nn.Module, path: str) -> Dict[str, Any]:
    """Values of the optional arguments under which a part is traced.

    Raises:
        TypeError: a part of the network, unlike the network itself, may be called with or without them.
    """
    optional = optional_arguments(part)
    if path and optional:
        raise TypeError(f"its forward has optional arguments: {', '.join(optional)}")
    parameters = inspect.signature(part.forward).parameters
    return {
        name: parameters[name].default
        for name in optional
        if parameters[name].kind is not inspect.Parameter.VAR_KEYWORD
    }


def _consumer(
    node: torch.fx.Node,
    *,
    modules: Dict[str, nn.Module],
    calls: Dict[nn.Module, int],
    callers: Dict[torch.fx.Node, str],
    path: str,
) -> Consumer:
    while True:
        users = list(node.users)
        if len(users) != 1:
            return Consumer(None, f"its output is used in {len(users)} places")
        node = users[0]
        module = modules[str(node.target)] if node.op == "call_module" else None
        if module is None or not is_pass_through(module):
            break
    if node.op == "output":
        return Consumer(None, f"its output leaves {path or 'the network'}")
    activation = activation_of_call(node) if module is None else activation_of_module(module)
    if activation is None:
        target = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        return Consumer(None, f"followed by {target}, not by a known activation")
    caller = ".".join(part for part in (path, callers[node]) if part)
    return Consumer(activation, "", module, calls[module] if module is not None else 0, caller, path)
