"""Whether a network's own code does with layers what it did with norms, whatever it asks them and however."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, List, Mapping, Sequence, Set, Tuple

from torch import Tensor, nn
from torch.fx import Graph
from torch.fx.node import map_arg

from normact.convert.plain_attributes import plainly_held, replace_module
from normact.traced_parts import TracedPart, trace_again
from normact.tracing import FlowTracer, kept_attributes, training_mode

_Call = Tuple[str, Any, str]


def norms_asked(
    model: nn.Module, parts: Mapping[bool, Sequence[TracedPart]], layers: Mapping[nn.Module, nn.Module]
) -> Set[nn.Module]:
    """Return the norms in whose places the network's code needs norms.

    The code is traced again with the layers in their places. Where it makes another call than before, or fails, it has
    decided by what stands there: its class, name, attributes or number of parameters. Every norm in the module whose
    code this is counts as asked.

    Args:
        model: the network; afterwards it is as it was.
        parts: of it, as traced with its norms, in training (True) and in evaluation.
        layers: norm -> what is to take its place.
    """
    asked: Set[nn.Module] = set()
    if model in layers:  # no code around it
        return asked
    for training, traced in parts.items():
        with training_mode(model, training):
            for part in traced:
                before = _calls(part.graph, part.modules, {})
                while True:
                    tried = {norm: layer for norm, layer in layers.items() if norm not in asked}
                    with kept_attributes(model), _in_their_places(model, tried):
                        tracer = trace_again(part)
                        modules = dict(part.modules[""].named_modules())
                        after = _calls(tracer.graph, modules, {layer: norm for norm, layer in tried.items()})
                    deciding = _deciding(part, before, tracer, after) & set(tried)
                    if not deciding or not _repeats_itself(model, part, before):
                        break
                    asked |= deciding
    return asked


def _deciding(part: TracedPart, before: List[_Call], tracer: FlowTracer, after: List[_Call]) -> Set[nn.Module]:
    """Return all inside the module whose code makes the first call that differs; nothing where all are alike."""
    if before == after:
        return set()
    alike = 0
    while alike < min(len(before), len(after)) and before[alike] == after[alike]:
        alike += 1
    nodes = list(part.graph.nodes)
    path = part.callers[nodes[min(alike, len(nodes) - 1)]]
    if alike < len(after):  # an inner module that no longer makes its last call is seen in the call that comes instead
        other = tracer.callers[list(tracer.graph.nodes)[alike]]
        path = min(path, other, key=len)
    return set(part.modules[path].modules())


def _repeats_itself(model: nn.Module, part: TracedPart, before: List[_Call]) -> bool:
    """Whether a part's code makes the same calls again with its norms; it does not where it decides at random."""
    with kept_attributes(model):
        return _calls(trace_again(part).graph, part.modules, {}) == before


def _calls(graph: Graph, modules: Mapping[str, nn.Module], norms: Mapping[nn.Module, nn.Module]) -> List[_Call]:
    """Return what is called and with what, whatever the names: a module, or a tensor, may have got another."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    calls: List[_Call] = []
    for node in graph.nodes:
        target: Any = node.target
        path, _, name = str(target).rpartition(".")
        if node.op == "call_module":
            target = norms.get(modules[target], modules[target])
        elif node.op == "get_attr" and path in modules:
            owner = modules[path]
            target = owner._parameters.get(name, owner._buffers.get(name, target))
        arguments = repr(map_arg((node.args, node.kwargs), lambda other: places[other]))
        calls.append((node.op, id(target) if isinstance(target, (Tensor, nn.Module)) else target, arguments))
    return calls


@contextmanager
def _in_their_places(model: nn.Module, layers: Mapping[nn.Module, nn.Module]) -> Iterator[None]:
    holders: List[nn.Module] = [module for module in model.modules() if next(plainly_held(module), None)]
    modes = {layer: layer.training for layer in layers.values()}
    for norm, layer in layers.items():
        layer.train(norm.training)
        replace_module(model, norm, layer, holders)
    try:
        yield
    finally:
        for norm, layer in layers.items():
            replace_module(model, layer, norm, holders)
            layer.train(modes[layer])
