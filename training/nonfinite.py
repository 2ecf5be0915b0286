"""Losses and gradients that are no longer finite numbers: found, and the error of a run that has them."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from configs.exit_codes import NONFINITE, ExplainedError


def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every number of all tensors is finite.

    A NaN or an infinity makes the 2-norm of its tensor not finite, and the 2-norm is many times faster on CPUs than
    their largest magnitude. Finite numbers may overflow it too (from 1.8e19 on in float32), so a norm that is not
    finite is followed by a look at every number.

    Args:
        tensors: one or more, of floating point, on one device.
    """
    norms = torch.stack(torch._foreach_norm(list(tensors)))
    if torch.isfinite(norms).all():
        return True
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


class NonFiniteLossError(ExplainedError, RuntimeError):
    """Raised before the weight update of a step, or at least before a checkpoint of it, so that none is spoiled.

    Args:
        step: 0-based index of the weight update that was not made.
        learning_rate: the value in force at that step.
        loss: the mean loss of that step; it may be finite where only a gradient is not.
        are_weights_intact: whether it was noticed before the update; a device that updates by itself is asked after.
    """

    exit_code = NONFINITE

    def __init__(self, step: int, learning_rate: float, loss: float, are_weights_intact: bool = True) -> None:
        kept = (
            "The weights are those from before this step" if are_weights_intact else "No checkpoint was written of it"
        )
        super().__init__(
            f"the loss or a gradient is not finite at step {step}: loss {loss}, learning rate {learning_rate:g}. "
            f"{kept}; lower optimizer.learning_rate, lengthen "
            "schedule.warmup_epochs, or check the data"
        )
        self.step = step
        self.learning_rate = learning_rate
        self.loss = loss
