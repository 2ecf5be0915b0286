"""One graph of a module's code for training and for evaluation."""

from __future__ import annotations

from typing import Any, Callable, List, NamedTuple, Optional, Set, Tuple

import torch.fx
from torch import nn
from torch.fx import Node
from torch.utils._pytree import tree_flatten, tree_unflatten

from normact.opaque_functions import OpaqueFunction
from normact.tracing import FlowTracer, kept_attributes, training_mode

NewTracer = Callable[[List[OpaqueFunction]], FlowTracer]


class BothModes(NamedTuple):
    """What tracing a module in both modes gives.

    Args:
        graph: of its code; None where that is another in training than in evaluation.
        tracers: of training and of evaluation.
        changed: names of the attributes that the code set.
        functions: those that are one call in the graph.
    """

    graph: Optional[torch.fx.Graph]
    tracers: Tuple[FlowTracer, FlowTracer]
    changed: List[str]
    functions: List[OpaqueFunction]


def trace_both_modes(module: nn.Module, new_tracer: NewTracer) -> BothModes:
    """Trace a module's code in training and in evaluation.

    Where the code hands on whether a module is in training, as in dropout(x, p, training=self.training), the graph
    reads it when it runs.

    Args:
        module: any.
        new_tracer: makes a tracer, given the functions that are to be one call, to which it may add.

    Raises:
        Exception: whatever the code raises when it meets a symbolic value.
    """
    functions: List[OpaqueFunction] = []
    changed: List[str] = []

    def trace(training: bool, apart: Set[nn.Module]) -> Tuple[torch.fx.Graph, FlowTracer]:
        tracer = new_tracer(functions)
        with training_mode(module, training):
            for part in apart:
                part.training = not training
            with kept_attributes(module, changed):
                return tracer.trace(module), tracer

    known = -1
    while known != len(functions):  # a function through which one trace does not go is one call in the other too
        known = len(functions)
        (graph, tracer), (evaluation, other) = trace(True, set()), trace(False, set())
    code = str(graph)
    differences = _modes_handed_on(graph, evaluation)
    if differences is not None:
        apart = {module.get_submodule(tracer.callers[node]) for node, _ in differences}
        if differences and str(trace(False, apart)[0]) != code:  # the code asks other modules than those that it is of
            differences = None
    if differences is None:
        return BothModes(None, (tracer, other), changed, functions)
    for node, position in differences:
        _read_mode(node, position, tracer.callers[node])
    return BothModes(graph, (tracer, other), changed, functions)


def _modes_handed_on(training: torch.fx.Graph, evaluation: torch.fx.Graph) -> Optional[List[Tuple[Node, int]]]:
    """Return (node, position among its arguments' values) of each True that is False in evaluation.

    None where the graphs differ otherwise.
    """
    found: List[Tuple[Node, int]] = []
    if len(training.nodes) != len(evaluation.nodes):
        return None
    for node, other in zip(training.nodes, evaluation.nodes):
        values, structure = tree_flatten((node.args, node.kwargs))
        others, other_structure = tree_flatten((other.args, other.kwargs))
        is_alike = (node.op, node.target, node.name) == (other.op, other.target, other.name)
        if not is_alike or structure != other_structure:
            return None
        for position, (value, in_evaluation) in enumerate(zip(values, others)):
            if value is True and in_evaluation is False:
                found.append((node, position))
            elif repr(value) != repr(in_evaluation):  # a node's is its name
                return None
    return found


def _read_mode(node: Node, position: int, path: str) -> None:
    with node.graph.inserting_before(node):
        mode: Any = node.graph.create_node("get_attr", f"{path}.training" if path else "training")
    values, structure = tree_flatten((node.args, node.kwargs))
    values[position] = mode
    node.args, node.kwargs = tree_unflatten(values, structure)
