"""LAMB on the host."""

from __future__ import annotations

import math
from typing import Any, Dict

import torch


def trust_ratio(weight: torch.Tensor, update: torch.Tensor, max_weight_norm: float) -> torch.Tensor:
    """min(|w|, max_weight_norm) / |u|, and 1 where either norm is 0."""
    weight_norm = weight.float().norm().clamp(max=max_weight_norm)
    update_norm = update.float().norm()
    ratio = weight_norm / update_norm
    return torch.where((weight_norm == 0) | (update_norm == 0), torch.ones_like(ratio), ratio)


@torch.no_grad()
def lamb_step(parameter: torch.Tensor, state: Dict[str, Any], group: Dict[str, Any], bias_correction: bool) -> None:
    """Update one parameter with the gradient it carries.

    m, s: moving means of gradient and squared gradient; u = m' / (sqrt(s') + eps) + wd * w; w -= lr * trust * u.
    """
    gradient = parameter.grad
    if gradient is None:
        raise ValueError("lamb_step needs a parameter with a gradient")
    if not state:
        state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
    state["step"] += 1
    beta1, beta2 = group["betas"]
    state["exp_avg"].mul_(beta1).add_(gradient, alpha=1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    mean_scale = 1 - beta1 ** state["step"] if bias_correction else 1.0
    square_scale = 1 - beta2 ** state["step"] if bias_correction else 1.0
    denominator = state["exp_avg_sq"].sqrt() / math.sqrt(square_scale) + group["eps"]
    update = state["exp_avg"] / mean_scale / denominator + group["weight_decay"] * parameter
    parameter.sub_(group["lr"] * trust_ratio(parameter, update, group["max_weight_norm"]) * update)
