"""Layers whose weights can take a scale and a shift of their input channels back."""

from __future__ import annotations

from typing import Collection, Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.utils import parametrize

from normact.fold.flow import find_takers, has_hooks
from normact.fold.layers import ABSENT, ChannelAffine, by_output_channel
from normact.norm_act import NormAct
from normact.tracing import TracedPart, traced_parts

_TAKERS = (nn.Conv2d, nn.Linear)


class TakersFound(NamedTuple):
    """Where the output of a layer goes.

    Args:
        modules: all convolutions and linear layers that take it; empty where it also goes elsewhere.
        reason: why there are none; else empty.
    """

    modules: Tuple[nn.Module, ...] = ()
    reason: str = ""


def takers_of(model: nn.Module, layers: Collection[NormAct]) -> Dict[NormAct, TakersFound]:
    """Return what takes the output of each layer in evaluation; a layer that no trace reaches is left out."""
    names: Dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            names[id(parameter)] = names.get(id(parameter), 0) + 1
    found: Dict[NormAct, TakersFound] = {}
    for part in traced_parts(model, lambda module: module in layers, []):
        calls = _calls(part)
        for node in list(part.graph.nodes):
            called = part.modules[str(node.target)] if node.op == "call_module" else None
            if isinstance(called, ABSENT) and not has_hooks(called):
                node.replace_all_uses_with(node.all_input_nodes[0])
                part.graph.erase_node(node)
        for layer in layers:
            if layer in calls:
                found[layer] = _takers(calls, layer, part, names)
    return found


def _calls(part: TracedPart) -> Dict[nn.Module, List[Node]]:
    calls: Dict[nn.Module, List[Node]] = {}
    for node in part.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(part.modules[str(node.target)], []).append(node)
    return calls


def _takers(calls: Dict[nn.Module, List[Node]], layer: NormAct, part: TracedPart, names: Dict[int, int]) -> TakersFound:
    if len(calls[layer]) > 1:
        return TakersFound(reason=f"called at {len(calls[layer])} places")
    ones = torch.ones(layer.channels)
    takers = find_takers(calls[layer][0], ChannelAffine(ones, ones), part.modules)
    if takers.reason:
        return TakersFound(reason=takers.reason)
    modules = tuple(part.modules[str(node.target)] for node in takers.nodes)
    for module in modules:
        is_plain = type(module) in _TAKERS and not parametrize.is_parametrized(module)
        if not is_plain or any(names[id(parameter)] > 1 for parameter in module.parameters()):
            return TakersFound(reason=f"used by {type(module).__name__}, whose weights are not its own alone")
        if len(calls[module]) > 1:
            return TakersFound(reason=f"used by a {type(module).__name__} that is called at several places")
    return TakersFound(modules, "" if modules else "used by nothing")


def take_back(module: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Edit a convolution or linear layer in place to be itself of scale_c x + shift_c.

    A convolution without a bias leaves the shift out; one padded with zeros takes it as if there were no border.

    Args:
        module: nn.Conv2d or nn.Linear.
        scale: (C,), float64.
        shift: (C,), float64.
    """
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    weight = module.weight.double()
    if isinstance(module, nn.Conv2d):
        by_input = [by_output_channel(values, module)[..., None, None] for values in (scale, shift)]
    else:
        positions = module.in_features // scale.numel()
        by_input = [values.repeat_interleave(positions) for values in (scale, shift)]
    if module.bias is not None:
        module.bias.add_((weight * by_input[1]).flatten(1).sum(dim=1))
    module.weight.copy_(weight * by_input[0])
