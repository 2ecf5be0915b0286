"""RMSProp in TensorFlow's form, which the EfficientNets were trained with. torch.optim.RMSprop is another optimizer."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Optional

import torch
from torch import Tensor


class RMSpropTF(torch.optim.Optimizer):
    """RMSProp whose mean square starts at 1, with eps inside the square root and the learning rate inside the momentum.

    g' = g + weight_decay w
    s  = square_decay s + (1 - square_decay) g'^2,   s_0 = 1
    v  = momentum v + learning_rate g' / sqrt(s + eps),   v_0 = 0
    w  = w - v

    A learning rate that changes does not rescale what is already in v, unlike in torch.optim.RMSprop.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        square_decay: what the mean square keeps per update.
        momentum: what v keeps per update.
        eps: added to the mean square.
        weight_decay: L2 coefficient.

    Source: TensorFlow's RMSPropOptimizer; Tieleman and Hinton, "RMSProp", 2012.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        square_decay: float,
        momentum: float,
        eps: float,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "square_decay": square_decay,
            "momentum": momentum,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Optional[Callable[[], float]] = None) -> None:  # type: ignore[override]  # returns nothing
        """Update the weights once; closures are not supported."""
        assert closure is None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)

    def _update(self, parameters: List[Tensor], group: Dict[str, Any]) -> None:
        # One call for all tensors of a group: a network has hundreds, most of them small.
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {"square": torch.ones_like(parameter), "velocity": torch.zeros_like(parameter)}
        squares = [self.state[parameter]["square"] for parameter in parameters]
        velocities = [self.state[parameter]["velocity"] for parameter in parameters]
        torch._foreach_mul_(squares, group["square_decay"])
        torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - group["square_decay"])
        roots = torch._foreach_add(squares, group["eps"])
        torch._foreach_sqrt_(roots)
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_addcdiv_(velocities, gradients, roots, group["lr"])
        torch._foreach_sub_(parameters, velocities)
