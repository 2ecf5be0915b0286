"""The error of a run whose loss or gradients are no longer finite numbers."""

from __future__ import annotations


class NonFiniteLossError(RuntimeError):
    """Raised before the weight update of a step, or at least before a checkpoint of it, so that none is spoiled.

    Args:
        step: 0-based index of the weight update that was not made.
        learning_rate: the value in force at that step.
        loss: the mean loss of that step; it may be finite where only a gradient is not.
        are_weights_intact: whether it was noticed before the update; a device that updates by itself is asked after.
    """

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
