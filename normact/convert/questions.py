"""What a network's own code asks its modules, and those in their places would answer otherwise or not at all."""

from __future__ import annotations

from typing import Dict, Mapping, NamedTuple, Set

from torch import nn

from normact.attribute_reads import Reads, kinds_asked, reads_in_code
from normact.factory import NormActFactory
from normact.recognize import NormDescription


class Questions(NamedTuple):
    """What the conversion has to leave because of a network's code.

    Args:
        norms: why norms stay, of which the code needs more than a layer has.
        activations: those that have to stay in the network, though they become part of a layer.
    """

    norms: Dict[nn.Module, str]
    activations: Set[nn.Module]


def find_questions(
    model: nn.Module, norms: Mapping[nn.Module, NormDescription], seen: Reads, factory: NormActFactory
) -> Questions:
    """Return what the code of a network asks.

    Args:
        model: the network.
        norms: those that could be replaced.
        seen: attributes of norms and activations that code was seen to read.
        factory: makes the layers.
    """
    reads = {module: set(names) for module, names in seen.items()}
    kinds: Dict[nn.Module, str] = {}
    for module in model.modules():
        if module in reads:  # what a norm asks itself goes with it
            continue
        for part, name in reads_in_code(module, reads):
            reads[part].add(name)
        kinds.update(kinds_asked(module, reads, "forward"))
        if factory.uses_batch_norm:  # elsewhere it changes nothing which norms a network's train() keeps in evaluation
            kinds.update(kinds_asked(module, norms, "train"))
    reasons: Dict[nn.Module, str] = {}
    for norm, description in norms.items():
        name = _unanswered(norm, reads.get(norm, set()), description.channels, factory)
        if norm in kinds:
            reasons[norm] = f"the network's own code asks whether it is a {kinds[norm]}"
        elif name:
            reasons[norm] = f"the network's own code uses its {name}, which another layer has not"
    activations = {part for part, names in reads.items() if part not in norms and (names or part in kinds)}
    return Questions(reasons, activations)


def _unanswered(norm: nn.Module, names: Set[str], channels: int, factory: NormActFactory) -> str:
    """Return what a layer lacks of the names, or has where the norm has nothing."""
    names = names - {"training"}  # the same in the layer
    if not names:
        return ""
    try:
        layer = factory(channels, None, bias=True)
    except ValueError:  # said when the norm's layer is built
        return ""
    for name in sorted(names):
        if hasattr(norm, name) != hasattr(layer, name):
            return name
        if _is_nothing(getattr(norm, name, None)) != _is_nothing(getattr(layer, name, None)):
            return name
    return ""


def _is_nothing(value: object) -> bool:
    return value is None or value is False
