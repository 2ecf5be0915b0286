"""The error of a run whose loss or gradients are no longer finite numbers."""

from __future__ import annotations


class NonFiniteLossError(RuntimeError):
    """Raised before the weight update of a step, so that neither weights nor checkpoints are spoiled.

    Args:
        step: 0-based index of the weight update that was not made.
        learning_rate: the value in force at that step.
        loss: the mean loss of that step; it may be finite where only a gradient is not.
    """

    def __init__(self, step: int, learning_rate: float, loss: float) -> None:
        super().__init__(
            f"the loss or a gradient is not finite at step {step}: loss {loss}, learning rate {learning_rate:g}. "
            "The weights are those from before this step; lower optimizer.learning_rate, lengthen "
            "schedule.warmup_epochs, or check the data"
        )
        self.step = step
        self.learning_rate = learning_rate
        self.loss = loss
