"""The optimizer, with weight decay on some parameters and not on others."""

from __future__ import annotations

import logging
from typing import AbstractSet, Any, Callable, Dict, List

import torch
from torch import nn

from configs.schema.learning import OptimizerConfig
from training.lamb import Lamb
from training.optimizer_state import check_optimizer_state
from training.rmsprop import RMSpropTF

Groups = List[Dict[str, Any]]
LOGGER = logging.getLogger(__name__)


def build_optimizer(config: OptimizerConfig, model: nn.Module, undecayed: AbstractSet[str]) -> torch.optim.Optimizer:
    """Return the optimizer over the model's trainable parameters in two groups: with weight decay, and without.

    sgd      g' = g + weight_decay * w (first group only), v = momentum * v + g', and
             w -= learning_rate * v, or with Nesterov momentum w -= learning_rate * (g' + momentum * v)
    rmsprop  training.rmsprop.RMSpropTF, with L2 weight decay as in sgd
    adamw    torch.optim.AdamW, with w -= learning_rate * weight_decay * w beside the update
    lamb     training.lamb.Lamb

    Frozen parameters (requires_grad false) belong to no group, since they never receive a gradient; the log names them.
    A group that would be empty is left out.

    Args:
        config: the checked section of the configuration; its learning rate is the start value of every group.
        model: the network.
        undecayed: names, as in model.named_parameters(), that take no weight decay. A parameter that has several names
            is undecayed if one of them is here.

    Raises:
        ValueError: names in `undecayed` that the model does not have; a model with nothing to train.
    """
    # All names, those of shared parameters included; a parameter still enters a group only once.
    named = dict(model.named_parameters(remove_duplicate=False))
    unknown = sorted(undecayed - named.keys())
    if unknown:
        raise ValueError(
            f"{len(unknown)} names without weight decay are not parameters of the model: {', '.join(unknown[:5])}; "
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
    return _OPTIMIZERS[config.name](
        config, [{"params": parameters, "weight_decay": decay} for parameters, decay in groups if parameters]
    )


def _build_sgd(config: OptimizerConfig, groups: Groups) -> torch.optim.Optimizer:
    return fused_where_possible(
        torch.optim.SGD,
        groups,
        lr=config.learning_rate,
        momentum=config.momentum or 0.0,
        nesterov=bool(config.nesterov),
    )


def _build_rmsprop(config: OptimizerConfig, groups: Groups) -> torch.optim.Optimizer:
    assert config.square_decay is not None and config.momentum is not None and config.eps is not None  # the schema
    return RMSpropTF(
        groups, config.learning_rate, square_decay=config.square_decay, momentum=config.momentum, eps=config.eps
    )


def _build_adamw(config: OptimizerConfig, groups: Groups) -> torch.optim.Optimizer:
    assert config.betas is not None and config.eps is not None  # the schema requires them
    beta1, beta2 = config.betas
    return fused_where_possible(
        torch.optim.AdamW, groups, lr=config.learning_rate, betas=(beta1, beta2), eps=config.eps
    )


def _build_lamb(config: OptimizerConfig, groups: Groups) -> torch.optim.Optimizer:
    assert config.betas is not None and config.eps is not None  # the schema requires them
    return Lamb(groups, config.learning_rate, betas=config.betas, eps=config.eps)


def fused_where_possible(
    kind: Callable[..., torch.optim.Optimizer], groups: Groups, **settings: Any
) -> torch.optim.Optimizer:
    """Choose one pass over each weight and its state, where torch has that for these devices; else one per operation.

    The order of the sums differs, so the two agree to rounding only.
    """
    try:
        return kind([dict(group) for group in groups], fused=True, **settings)
    except (TypeError, RuntimeError):  # older torch: no such argument, or only for other devices and types
        return kind(groups, **settings)


_OPTIMIZERS: Dict[str, Callable[[OptimizerConfig, Groups], torch.optim.Optimizer]] = {
    "sgd": _build_sgd,
    "rmsprop": _build_rmsprop,
    "adamw": _build_adamw,
    "lamb": _build_lamb,
}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Dict[str, Any], is_updated: bool = True) -> None:
    """Continue from `optimizer.state_dict()`; tensors of a parameter's shape take its memory layout.

    Checkpoints hold the default layout. Lamb sums over whole tensors, and rounds as before the checkpoint only if it
    sums in the same order. A checkpoint's own choice between fused and plain updates stays, as far as this torch can:
    the two round differently.

    Args:
        optimizer: takes the state.
        state: a state dict of torch's form.
        is_updated: whether it is of after a first update.

    Raises:
        CheckpointError: it is not the state of such an optimizer.
    """
    check_optimizer_state(optimizer, state, is_updated)
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    groups = [{**settings, **saved} for settings, saved in zip(own, state["param_groups"])]
    optimizer.load_state_dict({**state, "param_groups": groups})
    if not optimizer.defaults.get("fused", True):
        for group in optimizer.param_groups:
            group["fused"] = None
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the learning rate of every group, for the next weight update."""
    for group in optimizer.param_groups:
        group["lr"] = value
