"""Operations that change values in place, made ordinary ones."""

from __future__ import annotations

import inspect
import operator
from typing import Any, Dict, List, Set, Tuple

import torch
import torch.fx
from torch import nn

from normact.opaque_functions import OpaqueFunction
from normact.tracing import FlowTracer, kept_attributes

_OUT_OF_PLACE: Dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    torch.relu_: torch.relu,
}
_METHODS = ("add_", "sub_", "mul_", "div_", "relu_", "sigmoid_", "tanh_", "clamp_", "clamp_min_", "clamp_max_")


def in_place_operations(module: nn.Module) -> Tuple[bool, List[str]]:
    """Whether a module's own code changes values in place; and the names of functions of which that is not known.

    The code of the modules that it calls is not meant.

    Raises:
        Exception: whatever that code raises when it meets a symbolic value.
    """
    functions: List[OpaqueFunction] = []
    with kept_attributes(module):
        graph = FlowTracer(lambda *_: True, functions=functions).trace(module)
    return replace_in_place_operations(graph), [function.__name__ for function, _ in functions]


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
        source = first_argument(node) if changed else None
        if isinstance(source, torch.fx.Node):
            # In place, every later use of the input sees the result too.
            for later in _nodes_after(node) & set(source.users):
                later.replace_input_with(source, node)
        found = found or changed
    return found


def first_argument(node: torch.fx.Node) -> Any:
    """Return the first argument of a call, which torch calls `input`."""
    return node.args[0] if node.args else node.kwargs.get("input")


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
