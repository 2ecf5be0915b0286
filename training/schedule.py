"""The learning rate as a pure function of the step: nothing to save or restore, the same after any resumption."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Callable

from configs.schema.learning import ScheduleConfig


def build_schedule(schedule: ScheduleConfig, peak_learning_rate: float, steps_per_epoch: int) -> Callable[[int], float]:
    """Return step -> learning rate in force during that weight update (0-based).

    learning_rate = peak * min(1, t / warmup_epochs) * decay(t),  t = (step + 1) / steps_per_epoch epochs, with decay(t)

        constant     1
        cosine       (1 + cos(pi t / epochs)) / 2
        step         decay_factor ^ (number of milestones < t)
        exponential  decay_factor ^ (number of k >= 1 with k * decay_epochs < t; k >= 0 with first_drop at_start)

    t is the time at the end of the update, so the last update of epoch e has t = e. A drop at epoch m is strict: the
    update that completes m epochs still has the old value, the next one the new.

    Args:
        schedule: the checked section of the configuration.
        peak_learning_rate: the value that warm-up climbs to, for the whole global batch.
        steps_per_epoch: weight updates per pass over the training images.

    Raises:
        ValueError: steps_per_epoch < 1; from the returned function, a step outside the run.
    Source: cosine without restarts: Loshchilov & Hutter, "SGDR", 2017, equation 5; warm-up: Goyal et al., 2017.
    """
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch {steps_per_epoch} must be at least 1; is one batch more than the data set?")
    decay = _build_decay(schedule)
    warmup_epochs = _exact(schedule.warmup_epochs)
    num_steps = schedule.epochs * steps_per_epoch

    def learning_rate(step: int) -> float:
        if not 0 <= step < num_steps:
            raise ValueError(
                f"step {step} is outside the run: {schedule.epochs} epochs x {steps_per_epoch} steps are "
                f"0 to {num_steps - 1}"
            )
        epochs_done = Fraction(step + 1, steps_per_epoch)
        warmup = 1.0 if epochs_done >= warmup_epochs else float(epochs_done / warmup_epochs)
        return peak_learning_rate * warmup * decay(epochs_done)

    return learning_rate


def _build_decay(schedule: ScheduleConfig) -> Callable[[Fraction], float]:
    """Return the factor on the peak as a function of the epochs done; exact time puts drops on the right step."""
    if schedule.name == "constant":
        return lambda epochs_done: 1.0
    if schedule.name == "cosine":
        return lambda epochs_done: (1.0 + math.cos(math.pi * float(epochs_done / schedule.epochs))) / 2.0
    if schedule.name == "step":
        assert schedule.milestones is not None and schedule.decay_factor is not None  # the schema requires them
        step_factor, milestones = schedule.decay_factor, [_exact(milestone) for milestone in schedule.milestones]
        return lambda epochs_done: step_factor ** sum(milestone < epochs_done for milestone in milestones)
    if schedule.name == "exponential":
        assert schedule.decay_epochs is not None and schedule.decay_factor is not None  # the schema requires them
        factor, decay_epochs = schedule.decay_factor, _exact(schedule.decay_epochs)
        later = 0 if schedule.first_drop == "at_start" else 1
        return lambda epochs_done: factor ** (math.ceil(epochs_done / decay_epochs) - later)
    raise ValueError(f"schedule {schedule.name!r} is not known; use constant, cosine, step or exponential")


def _exact(epochs: float) -> Fraction:
    """Return the decimal number as written, not its nearest float: 12 epochs are then exactly 5 times 2.4 epochs."""
    return Fraction(repr(epochs))
