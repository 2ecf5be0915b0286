"""Another forward for a module that stays what it is: its class, methods, attributes, hooks and tensors."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Set, Tuple

import torch
import torch.fx
from torch import nn

from normact.convert.both_modes import BothModes, trace_both_modes
from normact.convert.in_place import first_argument, in_place_operations, replace_in_place_operations
from normact.known_activations import hooks_of
from normact.recognize import is_dropout, is_pass_through
from normact.tracing import FlowTracer, optional_arguments


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
    try:
        traced = _traced(module, rewriting)
    # Whatever the module's own code raises when it meets a symbolic value.
    except Exception as error:
        return f"its code could not be traced ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
    contexts = sorted({context for tracer in traced.tracers for context in tracer.contexts})
    if contexts:
        return f"its code enters a context ({', '.join(contexts)})"
    if traced.changed:
        return f"its code makes tensors or sets attributes ({', '.join(sorted(set(traced.changed)))})"
    if any(hooks_of(part) for tracer in traced.tracers for part in tracer.entered):
        return "a module whose code would become part of it has hooks"
    return "" if traced.graph is not None else "its code differs between training and evaluation"


def rewrite_forward(module: nn.Module, rewriting: Rewriting) -> None:
    """Give a module its new forward, in place; why_not_rewritten has nothing against it.

    Its class becomes one that extends its own by that forward. Copies and pickles recreate the forward.
    """
    graph = _traced(module, rewriting).graph
    assert graph is not None
    _erase_activations(graph, module, {module.get_submodule(path) for path in rewriting.layers})
    if rewriting.out_of_place:
        replace_in_place_operations(graph)
    if isinstance(module, torch.fx.GraphModule):  # it makes its forward, and that of its copies, from its graph
        module.graph = graph
        return
    forward = type(torch.fx.GraphModule(module, graph)).forward
    own, earlier = (
        (type(module).__mro__[2], module._rewritings) if isinstance(module, _Rewritten) else (type(module), ())
    )
    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "__doc__": own.__doc__}
    attributes = {**names, "forward": forward, "_rewritings": (*earlier, rewriting)}
    module.__class__ = type(own.__name__, (_Rewritten, own), attributes)


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


def _traced(module: nn.Module, rewriting: Rewriting) -> BothModes:
    return trace_both_modes(
        module, lambda functions: FlowTracer(lambda _, path: path not in rewriting.entered, functions=functions)
    )


def _erase_activations(graph: torch.fx.Graph, module: nn.Module, layers: Set[nn.Module]) -> None:
    for node in list(graph.nodes):
        if node.op != "call_module" or module.get_submodule(node.target) not in layers:
            continue
        user = next(iter(node.users))
        while user.op == "call_module" and _is_passed(module.get_submodule(user.target)):
            user = next(iter(user.users))
        user.replace_all_uses_with(first_argument(user))
        graph.erase_node(user)
    graph.lint()


def _is_passed(module: nn.Module) -> bool:
    return is_pass_through(module) or is_dropout(module)


def remove_in_place_operations(model: nn.Module) -> Tuple[Set[str], Tuple[Tuple[str, str], ...]]:
    """Return the paths of modules with a new forward, and (path, why) of those that may change values in place."""
    rewritten: Set[str] = set()
    left: List[Tuple[str, str]] = []
    for path, module in model.named_modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False
        is_torch_or_ours = type(module).__module__.startswith(("torch.nn.", "normact."))
        if is_torch_or_ours or isinstance(module, torch.jit.ScriptModule) or not list(module.children()):
            continue
        own_code = Rewriting((), out_of_place=True)
        try:
            found, functions = in_place_operations(module)
        # Whatever the module's own code raises when it meets a symbolic value.
        except Exception as error:
            left.append((path, f"{type(error).__name__}: its code could not be traced"))
            continue
        left.extend((path, f"it calls {name}, whose code could not be traced") for name in functions)
        if not found:
            continue
        reason = why_not_rewritten(module, own_code)
        if reason:
            left.append((path, reason))
        else:
            rewrite_forward(module, own_code)
            rewritten.add(path)
    return rewritten, tuple(left)
