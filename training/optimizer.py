"""The optimizer, with weight decay on some parameters and not on others."""

from __future__ import annotations

import logging
from typing import AbstractSet, List

import torch
from torch import nn

from configs.learning_sections import OptimizerConfig

LOGGER = logging.getLogger(__name__)


def build_optimizer(config: OptimizerConfig, model: nn.Module, undecayed: AbstractSet[str]) -> torch.optim.Optimizer:
    """SGD over the model's trainable parameters in two groups: with weight decay, and without.

    g' = g + weight_decay * w (first group only), v = momentum * v + g', and
    w -= learning_rate * v, or with Nesterov momentum w -= learning_rate * (g' + momentum * v).

    Frozen parameters (requires_grad false) belong to no group, since they never receive a gradient; the log names them.
    A group that would be empty is left out.

    Args:
        config: the checked section of the configuration; its learning rate is the start value of every group.
        model: the network.
        undecayed: names, as in model.named_parameters(), that take no weight decay. A parameter that has several names
            is undecayed if one of them is here.

    Raises: ValueError for names in `undecayed` that the model does not have, and for a model with nothing to train.
    """
    # All names, those of shared parameters included; a parameter still enters a group only once.
    named = dict(model.named_parameters(remove_duplicate=False))
    unknown = sorted(undecayed - named.keys())
    if unknown:
        raise ValueError(
            f"{len(unknown)} names without weight decay are no parameters of the model: {', '.join(unknown[:5])}; "
            "pass names of this model's named_parameters()"
        )
    is_undecayed = {id(named[name]) for name in undecayed}
    decayed_parameters: List[nn.Parameter] = []
    undecayed_parameters: List[nn.Parameter] = []
    frozen: List[str] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            frozen.append(name)
        elif id(parameter) in is_undecayed:
            undecayed_parameters.append(parameter)
        else:
            decayed_parameters.append(parameter)
    if frozen:
        LOGGER.info("%d parameters are frozen and not trained: %s", len(frozen), ", ".join(frozen[:5]))
    if not decayed_parameters and not undecayed_parameters:
        raise ValueError(f"the model has no parameter to train; {len(frozen)} are frozen (requires_grad false)")
    groups = ((decayed_parameters, config.weight_decay), (undecayed_parameters, 0.0))
    return torch.optim.SGD(
        [{"params": parameters, "weight_decay": weight_decay} for parameters, weight_decay in groups if parameters],
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every group, for the next weight update."""
    for group in optimizer.param_groups:
        group["lr"] = value
