"""Tensors of the device that a program can ask for by name: anchorTensor(), getTensorNames()."""

from __future__ import annotations

from typing import Any, Callable, Dict, List

import torch

from .device_optimizer import DeviceOptimizer
from .device_weights import DeviceWeights
from .errors import backend_error
from .program import Program


def named_tensors(program: Program, weights: DeviceWeights) -> Dict[str, Callable[[], torch.Tensor]]:
    """All named tensors and how to read them: weights, and in training gradients, updated weights and the optimizer's.

    Gradients and updated weights are those of the last weight update.
    """
    found: Dict[str, Callable[[], torch.Tensor]] = {}
    for tensor in weights.parameters + weights.buffers:
        found[tensor.name] = lambda t=tensor: t.values[0].detach().clone()  # type: ignore[misc]
    optimizer = program.optimizer
    if optimizer is not None:
        _add_training(found, program, optimizer)
    return found


def _add_training(found: Dict[str, Callable[[], torch.Tensor]], program: Program, optimizer: DeviceOptimizer) -> None:
    for position, target in enumerate(optimizer.trained):
        name, weight = target.weight.name, target.weight
        found[f"UpdatedVar___{name}"] = lambda w=weight: w.values[0].detach().clone()  # type: ignore[misc]
        found[f"Gradient___{name}"] = lambda p=position: program.last_gradients[(p, 0)].clone()  # type: ignore[misc]
    for name in optimizer.numbers:
        found[name] = lambda n=name: optimizer.numbers[n].clone()  # type: ignore[misc]
    found["finalLossScale"] = lambda: torch.tensor(optimizer.loss_scaling)


def read_anchors(program: Program, weights: DeviceWeights, anchored: Dict[str, List[Any]]) -> Dict[str, torch.Tensor]:
    """The anchored tensors after a call.

    Raises:
        Error: no tensor of this name.
    """
    tensors = named_tensors(program, weights)
    result = {}
    for short_name, (long_name, *_) in anchored.items():
        if long_name not in tensors:
            raise backend_error(f"Anchored tensor {long_name} does not exist; there are {sorted(tensors)}")
        result[short_name] = tensors[long_name]()
    return result
