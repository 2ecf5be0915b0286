"""LAMB, for large global batches."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Iterable, Optional, Sequence

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """Adam's direction, its length set layer by layer to a share of the weights' own.

    m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
    u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay w
    w = w - learning_rate r u,   r = |w| / |u| for tensors of two or more axes, where both are positive; else 1

    Vectors (biases, the norms' and the proxy's parameters) take r = 1: most of them start at zero, where a share of
    their own length is nothing.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: beta1, beta2.
        eps: added to the square root.
        weight_decay: of the decoupled kind, inside u.

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 Minutes", 2020, algorithm 2.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, *, betas: Sequence[float], eps: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], float]] = None) -> None:  # type: ignore[override]  # returns nothing
        """Update the weights once; closures are not supported."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: Dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(updates=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        state["updates"] += 1
        beta1, beta2 = group["betas"]
        state["mean"].lerp_(gradient, 1.0 - beta1)
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        root = (state["square"].sqrt() / math.sqrt(1.0 - beta2 ** state["updates"])).add_(group["eps"])
        direction = (state["mean"] / root).div_(1.0 - beta1 ** state["updates"])
        direction.add_(parameter, alpha=group["weight_decay"])
        if parameter.dim() > 1:
            length, size = parameter.norm(), direction.norm()
            is_measurable = (length > 0) & (size > 0)
            # Tensors throughout: no wait for the device.
            direction.mul_(torch.where(is_measurable, length / size, torch.ones_like(length)))
        parameter.add_(direction, alpha=-group["lr"])
