"""Find what follows each norm of a network, by symbolic tracing."""

from __future__ import annotations

import operator
from typing import Any, Collection, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
import torch.fx
from torch import nn

from normact.activations import Activation, activation_name, parse_activation
from normact.attribute_reads import Reads, watched_reads
from normact.known_activations import activation_of_call, activation_of_module, hooks_of, is_activation
from normact.recognize import describe_norm, is_dropout, is_pass_through
from normact.traced_parts import TracedPart, traced_parts
from normact.tracing import kept_attributes, training_mode

_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


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


class DataFlow(NamedTuple):
    """What is known of the norms of a network.

    Args:
        consumers: what follows each norm that a trace reaches.
        reads: of each norm and activation, the attributes that the network's own code read meanwhile.
        failures: (path, error) of every failed trace.
        parts: the traced parts of the network in training (True) and in evaluation.
    """

    consumers: Dict[nn.Module, Consumer]
    reads: Reads
    failures: List[Tuple[str, str]]
    parts: Dict[bool, List[TracedPart]]


def find_data_flow(model: nn.Module) -> DataFlow:
    """Trace a network in training and in evaluation.

    Where the network cannot be traced as a whole, each of its children is traced by itself, and so on
    down; a norm whose output leaves the traced part then has an unknown consumer.
    """
    both: List[Dict[nn.Module, Consumer]] = []
    parts: Dict[bool, List[TracedPart]] = {True: [], False: []}
    failures: List[Tuple[str, str]] = []
    watched = {
        m for m in model.modules() if (_is_norm(m) and not isinstance(m, torch.jit.ScriptModule)) or is_activation(m)
    }
    with watched_reads(watched) as reads:
        for training in (True, False):
            consumers: Dict[nn.Module, Consumer] = {}
            failed: List[Tuple[str, str]] = []
            with training_mode(model, training), kept_attributes(model):
                for part in traced_parts(model, _is_norm, failed):
                    parts[training].append(part)
                    _find_consumers_of_part(part, consumers)
                    for module, name in _taken_tensors(part, watched):
                        reads[module].add(name)
            both.append(consumers)
            failures.extend(failure for failure in failed if failure not in failures)
    found = {norm: _in_both_modes([mode[norm] for mode in both if norm in mode]) for norm in {**both[1], **both[0]}}
    return DataFlow(found, reads, failures, parts)


def _taken_tensors(part: TracedPart, of: Collection[nn.Module]) -> Iterator[Tuple[nn.Module, str]]:
    for node in part.graph.nodes:
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            module = part.modules.get(path)
            if path and module is not None and module in of:  # a part that is a norm takes its own
                yield module, name


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
