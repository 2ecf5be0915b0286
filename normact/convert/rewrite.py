"""Another forward for a module that stays what it is: its class, methods, attributes, hooks and tensors."""

from __future__ import annotations

import inspect
import operator
from typing import Any, Dict, List, NamedTuple, Set, Tuple

import torch
import torch.fx
from torch import nn

from normact.known_activations import hooks_of
from normact.recognize import is_dropout, is_pass_through
from normact.tracing import FlowTracer, kept_attributes, optional_arguments, training_mode

_OUT_OF_PLACE: Dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    torch.relu_: torch.relu,
}
_METHODS = ("add_", "sub_", "mul_", "div_", "relu_", "sigmoid_", "tanh_", "clamp_", "clamp_min_", "clamp_max_")


class Rewriting(NamedTuple):
    """What the new forward of a module is, from its present one.

    Args:
        entered: paths of the modules inside whose code becomes part of it.
        layers: paths of the layers behind which the next operation, their activation, is left out.
        out_of_place: whether in-place operations become ordinary ones.
    """

    entered: Tuple[str, ...]
    layers: Tuple[str, ...] = ()
    out_of_place: bool = False


def why_not_rewritten(module: nn.Module, rewriting: Rewriting) -> str:
    """Why a graph would not be all that the module's code does; empty where it would.

    A graph is one path through the code, without the contexts that the code enters and the attributes that it sets.
    """
    optional = optional_arguments(module)
    if optional:
        return f"it has optional arguments {', '.join(optional)}"
    codes = []
    for training in (True, False):
        changed: List[str] = []
        tracer = _tracer(rewriting)
        with training_mode(module, training), kept_attributes(module, changed):
            try:
                codes.append(str(tracer.trace(module)))
            # Whatever the module's own code raises when it meets a symbolic value.
            except Exception as error:
                return f"its code could not be traced ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        if tracer.contexts:
            return f"its code enters a context ({', '.join(sorted(tracer.contexts))})"
        if changed:
            return f"its code makes tensors or sets attributes ({', '.join(sorted(set(changed)))})"
        if any(hooks_of(part) for part in tracer.entered):
            return "a module whose code would become part of it has hooks"
    return "its code differs between training and evaluation" if codes[0] != codes[1] else ""


def rewrite_forward(module: nn.Module, rewriting: Rewriting) -> None:
    """Give a module its new forward, in place.

    Its class becomes one that extends its own by that forward. Copies and pickles recreate the forward.
    """
    with training_mode(module, module.training):
        graph = _tracer(rewriting).trace(module)
    _erase_activations(graph, module, {module.get_submodule(path) for path in rewriting.layers})
    if rewriting.out_of_place:
        replace_in_place_operations(graph)
    forward = type(torch.fx.GraphModule(module, graph)).forward
    own, earlier = (
        (type(module).__mro__[2], module._rewritings) if isinstance(module, _Rewritten) else (type(module), ())
    )
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    attributes = {**names, "forward": forward, "_rewritings": (*earlier, rewriting)}
    module.__class__ = type(own.__name__, (_Rewritten, own), attributes)


def has_in_place_operations(module: nn.Module) -> bool:
    """Whether a module's own code, without that of the modules that it calls, changes values in place.

    Raises:
        Exception: whatever that code raises when it meets a symbolic value.
    """
    with kept_attributes(module):
        return replace_in_place_operations(_tracer(Rewriting(())).trace(module))


class _Rewritten:
    """What a rewritten module's class adds to its own."""

    _rewritings: Tuple[Rewriting, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        _, _, state, *rest = reduced
        own = type(self).__mro__[2]
        return (_without_forward, (own, self._rewritings), state, *rest)


class _WithoutForward:
    """A rewritten module before it has its attributes."""

    _rewritings: Tuple[Rewriting, ...]

    def __setstate__(self, state: Dict[str, Any]) -> None:
        rewritings = self._rewritings
        self.__class__ = type(self).__mro__[2]
        self.__setstate__(state)
        assert isinstance(self, nn.Module)
        for rewriting in rewritings:
            rewrite_forward(self, rewriting)


def _without_forward(own: Any, rewritings: Tuple[Rewriting, ...]) -> Any:
    made: Any = own.__new__(own)
    made.__class__ = type(own.__name__, (_WithoutForward, own), {"_rewritings": rewritings})
    return made


def _tracer(rewriting: Rewriting) -> FlowTracer:
    return FlowTracer(lambda _, path: path not in rewriting.entered)


def _erase_activations(graph: torch.fx.Graph, module: nn.Module, layers: Set[nn.Module]) -> None:
    for node in list(graph.nodes):
        if node.op != "call_module" or module.get_submodule(node.target) not in layers:
            continue
        user = next(iter(node.users))
        while user.op == "call_module" and _is_passed(module.get_submodule(user.target)):
            user = next(iter(user.users))
        user.replace_all_uses_with(user.args[0])
        graph.erase_node(user)
    graph.lint()


def _is_passed(module: nn.Module) -> bool:
    return is_pass_through(module) or is_dropout(module)


def replace_in_place_operations(graph: torch.fx.Graph) -> bool:
    """Make every in-place operation of a graph an ordinary one; whether there was one.

    The value under a changed name is what the graph uses from there on, so that no later use sees the old one.
    """
    found = False
    for node in list(graph.nodes):
        changed = True
        if node.op == "call_function" and node.target in _OUT_OF_PLACE:
            node.target = _OUT_OF_PLACE[node.target]
        elif node.op == "call_function" and _is_in_place(node):
            node.args, node.kwargs = node.args[:1], {**_named_arguments(node), "inplace": False}
        elif node.op == "call_method" and node.target in _METHODS:
            node.target = node.target[:-1]
        else:
            changed = False
        if changed and isinstance(node.args[0], torch.fx.Node):
            # In place, every later use of the input sees the result too.
            source = node.args[0]
            for later in _nodes_after(node) & set(source.users):
                later.replace_input_with(source, node)
        found = found or changed
    return found


def _nodes_after(node: torch.fx.Node) -> Set[torch.fx.Node]:
    nodes = list(node.graph.nodes)
    return set(nodes[nodes.index(node) + 1 :])


def _named_arguments(node: torch.fx.Node) -> Dict[str, Any]:
    """Return a call's arguments after the first, by name; empty unless the function is written in Python."""
    try:
        parameters = list(inspect.signature(node.target).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin function
        return {}
    return {**dict(zip(parameters[1:], node.args[1:])), **node.kwargs}


def _is_in_place(node: torch.fx.Node) -> bool:
    return bool(_named_arguments(node).get("inplace"))
