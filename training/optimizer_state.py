"""Whether the saved state of an optimizer is one that this optimizer can go on from."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any, Dict, Iterator, List, Mapping

import torch
from torch import Tensor, nn

from training.weights import CheckpointError, first_of, shown

_EXECUTED = {"params", "lr", "fused", "foreach", "capturable", "differentiable", "param_names"}  # lr: set at each step
_SWITCHES = ("fused", "foreach", "capturable", "differentiable")


def check_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], is_updated: bool = True) -> None:
    """Compare `state` with what `optimizer` has, or will have after its first update.

    torch takes any state of as many parameters: an empty one silently starts from zero, other settings replace
    those of the configuration, and other shapes or types fail in a later update, or round.

    Args:
        optimizer: that is to go on.
        state: the saved state dict.
        is_updated: whether it is of after a first update. Before that an optimizer keeps nothing.

    Raises:
        CheckpointError: what differs.
    """
    problems = list(_problems(optimizer, state, is_updated))
    if problems:
        raise CheckpointError(
            f"the saved optimizer is not that of this run: {first_of(problems)}. Use the configuration that wrote it"
        )


def _problems(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], is_updated: bool) -> Iterator[str]:
    groups: List[Mapping[str, Any]] = state["param_groups"]
    sizes = [len(group["params"]) if isinstance(group.get("params"), list) else -1 for group in groups]
    own = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != own:
        yield f"it has groups of {sizes} parameters, expected {own}"
        return
    indices: List[Any] = [index for group in groups for index in group["params"]]
    if not all(type(index) is int for index in indices) or len(set(indices)) < len(indices):
        yield "the numbers of its parameters are not whole and different"
        return
    for number, (saved, group) in enumerate(zip(groups, optimizer.param_groups)):
        yield from _different_settings(number, saved, group)
    kept = kept_by(optimizer) if is_updated else {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    strangers = sorted(set(state["state"]) - set(indices))
    if strangers:
        yield f"it has a state of parameter {strangers[0]}, which is in none of its groups"
    for index, parameter in zip(indices, parameters):
        yield from _different_entries(f"parameter {index}", state["state"].get(index, {}), kept, parameter)


def _different_settings(number: int, saved: Mapping[str, Any], group: Mapping[str, Any]) -> Iterator[str]:
    for name, value in group.items():
        if name in _EXECUTED:
            found = saved.get(name)
            if name in _SWITCHES and found is not None and type(found) is not bool:
                yield f"group {number} has {name} {shown(found)}, expected true, false or none"
            if name == "lr" and name in saved and type(found) not in (int, float):
                yield f"group {number} has lr {shown(found)}, expected a number"
        elif name in saved and _comparable(saved[name]) != _comparable(value):  # older versions of torch had fewer
            yield f"group {number} has {name} {shown(saved[name])}, expected {value!r}"


def _different_entries(
    where: str, found: Mapping[str, Any], kept: Mapping[str, bool], parameter: nn.Parameter
) -> Iterator[str]:
    entries = {name: value for name, value in found.items() if value is not None}
    if set(entries) != set(kept):
        yield f"of {where} it keeps {sorted(entries) or 'nothing'}, expected {sorted(kept) or 'nothing'}"
        return
    for name, is_whole in kept.items():
        value = entries[name]
        if is_whole:
            if not isinstance(value, Tensor) or value.shape != parameter.shape or not value.is_floating_point():
                yield f"{name} of {where} is {shown(value)}, expected real numbers of shape {tuple(parameter.shape)}"
        elif isinstance(value, Tensor) and value.numel() != 1:
            yield f"{name} of {where} is {shown(value)}, expected one number"


def kept_by(optimizer: torch.optim.Optimizer) -> Dict[str, bool]:
    """Return what an optimizer keeps per parameter after an update, and whether it has the parameter's shape."""
    like = optimizer.param_groups[0]["params"][0]
    probe = nn.Parameter(torch.zeros(2, 3, dtype=like.dtype, device=like.device))
    probe.grad = torch.zeros_like(probe)
    twin = copy.copy(optimizer)  # of the same kind, with the same settings: what it does to the probe tells
    twin.state = defaultdict(dict)
    twin.param_groups = [{**optimizer.param_groups[0], "params": [probe]}]
    twin.step()
    kept: Dict[str, Any] = twin.state[probe]
    return {name: getattr(value, "shape", ()) == (2, 3) for name, value in kept.items() if value is not None}


def _comparable(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else (type(value) is bool, value)
