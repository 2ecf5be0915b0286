"""Find what follows each norm of a network, by symbolic tracing."""

from __future__ import annotations

import inspect
import operator
import sys
from contextlib import contextmanager
from types import FrameType
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

import torch
import torch.fx
from torch import nn

from normact.activations import Activation, activation_name, parse_activation
from normact.known_activations import activation_of_call, activation_of_module, hooks_of, is_activation
from normact.norm_act import NormAct
from normact.recognize import describe_norm, is_dropout, is_pass_through

_DECORATORS = ("torch.utils._contextlib", "torch.amp.autocast_mode", "torch.autograd.grad_mode")
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_REGISTERED = ("_parameters", "_buffers", "_modules")


class Consumer(NamedTuple):
    """What takes a norm's output.

    Args:
        activation: the activation that follows, a name or a module; None where none does.
        reason: why there is none; where there is one, what else is to be said, else empty.
        module: the activation's module; None for a function.
        module_calls: how often that module is called in the traced part.
        caller: path of the module whose forward applies the activation.
        traced: path of the traced part.
    """

    activation: Optional[Activation]
    reason: str = ""
    module: Optional[nn.Module] = None
    module_calls: int = 0
    caller: str = ""
    traced: str = ""


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
    """

    # Else an operation on a buffer would run while tracing, once, instead of being recorded.
    proxy_buffer_attributes = True

    def __init__(self, is_leaf: Optional[Callable[[nn.Module, str], bool]] = None) -> None:
        super().__init__()
        self._extra_leaf = is_leaf
        self._stack: List[str] = [""]
        self.callers: Dict[torch.fx.Node, str] = {}
        self.contexts: Set[str] = set()
        self.entered: List[nn.Module] = []
        self._modes = _modes()

    def trace(self, root: Any, concrete_args: Optional[Dict[str, Any]] = None) -> torch.fx.Graph:
        if isinstance(root, nn.Module) and "forward" in vars(root):
            raise TypeError("its forward was replaced on the instance")
        watcher = sys.getprofile()
        sys.setprofile(self._watch)
        try:
            return super().trace(root, concrete_args)
        finally:
            sys.setprofile(watcher)

    def _watch(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or frame.f_code.co_name != "__enter__" or frame.f_back is None:
            return
        entered_by = str(frame.f_back.f_globals.get("__name__", ""))
        # Torch's own code enters contexts while it traces; its decorators do so for the code that they decorate.
        if not entered_by.startswith("torch.") or entered_by in _DECORATORS:
            manager = frame.f_locals.get("self")
            function = getattr(manager, "func", None)  # of a generator made a context manager
            self.contexts.add(getattr(function, "__name__", type(manager).__name__))

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, torch.jit.ScriptModule):
            return True
        if self._extra_leaf is not None:
            return self._extra_leaf(m, module_qualified_name)
        if describe_norm(m) is not None or isinstance(m, NormAct) or is_activation(m):
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
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
                elif vars(module).get(key) is not value and key != "training":
                    vars(module)[key] = value
                    _note(changed, key)


def _note(changed: Optional[List[str]], *names: str) -> None:
    if changed is not None:
        changed.extend(names)


def find_consumers(model: nn.Module) -> Tuple[Dict[nn.Module, Consumer], List[Tuple[str, str]]]:
    """Return what follows each norm that a trace reaches.

    Where the network cannot be traced as a whole, each of its children is traced by itself, and so on
    down; a norm whose output leaves the traced part then has an unknown consumer.

    Returns:
        The consumer of each norm reached, and (path, error) of every failed trace.
    """
    both: List[Dict[nn.Module, Consumer]] = []
    failures: List[Tuple[str, str]] = []
    for training in (True, False):
        consumers: Dict[nn.Module, Consumer] = {}
        failed: List[Tuple[str, str]] = []
        with training_mode(model, training), kept_attributes(model):
            for part in traced_parts(model, _is_norm, failed):
                _find_consumers_of_part(part, consumers)
        both.append(consumers)
        failures.extend(failure for failure in failed if failure not in failures)
    return {norm: _in_both_modes([mode[norm] for mode in both if norm in mode]) for norm in {**both[1], **both[0]}}, (
        failures
    )


def _is_norm(module: nn.Module) -> bool:
    return describe_norm(module) is not None


def _in_both_modes(consumers: List[Consumer]) -> Consumer:
    """Return one consumer of those found in training and in evaluation, each of which may not have been reached."""
    first, last = consumers[0], consumers[-1]
    if (first.activation, first.module) != (last.activation, last.module):
        return Consumer(None, "what follows it differs between training and evaluation")
    return first._replace(module_calls=max(first.module_calls, last.module_calls))


def _find_consumers_of_part(part: TracedPart, consumers: Dict[nn.Module, Consumer]) -> None:
    calls: Dict[nn.Module, int] = {}
    for node in part.graph.nodes:
        if node.op == "call_module":
            calls[part.modules[node.target]] = calls.get(part.modules[node.target], 0) + 1
    for node in part.graph.nodes:
        module = part.modules.get(node.target) if node.op == "call_module" else None
        if module is None or describe_norm(module) is None:
            continue
        if calls[module] > 1:
            consumers[module] = Consumer(None, f"called at {calls[module]} places")
        else:
            consumers[module] = _consumer(node, part, calls)


class TracedPart(NamedTuple):
    """A part of a network whose data flow is known.

    Args:
        path: of the part in the network; "" for all of it.
        graph: its calls.
        modules: of the part, by path in it.
        callers: node -> path, in the part, of the module whose forward made it.
    """

    path: str
    graph: torch.fx.Graph
    modules: Dict[str, nn.Module]
    callers: Dict[torch.fx.Node, str]


def traced_parts(
    part: nn.Module, holds: Callable[[nn.Module], bool], failures: List[Tuple[str, str]], path: str = ""
) -> Iterator[TracedPart]:
    """Yield the network as one part where it can be traced; else the parts of its children, and so on down.

    Args:
        part: the network.
        holds: parts that hold no module of which this is true are left out.
        failures: receives (path, error) of every failed trace.
        path: of the part in the network.
    """
    if not any(holds(module) for module in part.modules()):
        return
    tracer = FlowTracer()
    try:
        defaults = _defaults(part, path)
        graph = tracer.trace(part, defaults or None)
    # Whatever the network's own code raises when it meets a symbolic value.
    except Exception as error:
        if not holds(part):
            if not isinstance(part, (nn.ModuleList, nn.ModuleDict)):  # these have no forward to fail
                failures.append((path, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
            for name, child in part.named_children():
                yield from traced_parts(child, holds, failures, f"{path}.{name}" if path else name)
        return
    yield TracedPart(path, graph, dict(part.named_modules()), tracer.callers)


def _defaults(part: nn.Module, path: str) -> Dict[str, Any]:
    """Return values of the optional arguments under which a part is traced.

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


def _consumer(node: torch.fx.Node, part: TracedPart, calls: Dict[nn.Module, int]) -> Consumer:
    dropout = ""
    while True:
        users = list(node.users)
        if len(users) != 1:
            return Consumer(None, f"its output is used in {len(users)} places")
        node = users[0]
        module = part.modules[str(node.target)] if node.op == "call_module" else None
        if module is not None and is_dropout(module) and not is_pass_through(module):
            dropout = type(module).__name__
        elif module is None or not is_pass_through(module):
            break
    if node.op == "output":
        return Consumer(None, f"its output leaves {part.path or 'the network'}")
    if module is not None and hooks_of(module):
        return Consumer(None, f"followed by {type(module).__name__}, which has hooks")
    activation: Optional[Activation] = activation_of_call(node) if module is None else activation_of_module(module)
    if activation is None and module is not None and is_activation(module):
        activation = module
    if activation is None or activation == "identity":
        target = type(module).__name__ if module is not None else _name_of(node.target)
        return Consumer(None, f"followed by {target}, not by a known activation")
    if dropout and not _is_positively_homogeneous(activation):
        return Consumer(
            None, f"active {dropout} before its {activation_name(activation)}, with which it does not commute"
        )
    note = f"{dropout} now follows Proxy Normalization" if dropout else ""
    caller = ".".join(name for name in (part.path, part.callers[node]) if name)
    return Consumer(activation, note, module, calls[module] if module is not None else 0, caller, part.path)


def _name_of(target: Any) -> str:
    """Return a function's name, or a method's; `add` for `+=` too, as everyone reads it."""
    name = getattr(target, "__name__", str(target))
    return name[1:] if target in _IN_PLACE else name


def _is_positively_homogeneous(activation: Activation) -> bool:
    """Whether phi(a x) = a phi(x) for a >= 0, so that a random factor may as well follow."""
    return activation == "relu" or isinstance(activation, nn.PReLU) or parse_activation(activation)[0] == "leaky_relu"
