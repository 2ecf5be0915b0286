"""How far a run is: what the loop changes, and what a checkpoint keeps of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Dict, List, NamedTuple, Optional

from training.averaging import WeightAverage
from training.metrics import Means, StepSums


class Best(NamedTuple):
    """The epoch whose weights are the best by the validation split.

    Attributes:
        step: weight updates done at its end; the checkpoint of this step is kept.
        epoch: epochs done.
        validation: what it was chosen by.
        evaluation: of the same weights on the evaluation images; None where that was not due. It chooses nothing.
    """

    step: int
    epoch: int
    validation: Means
    evaluation: Optional[Means]

    def is_better(self, other: Optional[Best]) -> bool:
        """Return a higher top-1, or the same with a lower loss; of equal ones the first stays."""
        mine, others = self.validation, None if other is None else other.validation
        return others is None or (mine.top1, -mine.loss) > (others.top1, -others.loss)

    def as_dict(self) -> Dict[str, Any]:
        """For summaries and checkpoints: builtins alone."""
        evaluation = None if self.evaluation is None else self.evaluation._asdict()
        return {
            "step": self.step,
            "epoch": self.epoch,
            "validation": self.validation._asdict(),
            "evaluation": evaluation,
        }

    @classmethod
    def from_dict(cls, found: Dict[str, Any]) -> Best:
        """Return the inverse of `as_dict`."""
        evaluation = found["evaluation"]
        return cls(
            found["step"],
            found["epoch"],
            Means(**found["validation"]),
            None if evaluation is None else Means(**evaluation),
        )


@dataclass
class Progress:
    """The loop's state.

    Attributes:
        step: weight updates done.
        evaluated_step: the last end of an epoch that is finished, with its evaluation if one was due.
        interval: this process's sums since the last training record.
        interval_seconds: what they took.
        epoch: this process's sums since the epoch's start.
        evaluation: the last evaluation's means, over all processes.
        best_top1: of all evaluations.
        validation: the last means of the validation split; None without one.
        best: by the validation split; None without one.
        seconds: since the run's start, without the time between a stop and its continuation.
        training_seconds: the part of it spent in weight updates and in waiting for their images, without compiling.
        untimed_steps: weight updates during which something was compiled; their time is in `seconds` alone.
        interval_untimed_steps: those since the last training record.
        extended: {"epochs": what schedule.epochs was, "step": when it became more}, each time.
        average: of the weights over time; None for none. It has an entry of its own in a checkpoint.
        is_saved: whether a checkpoint holds all of this; true at the start, where nothing is to be held.
    """

    step: int = 0
    evaluated_step: int = 0
    interval: StepSums = field(default_factory=StepSums)
    interval_seconds: float = 0.0
    epoch: StepSums = field(default_factory=StepSums)
    evaluation: Means = field(default_factory=lambda: Means(0.0, 0.0, 0.0))
    best_top1: float = 0.0
    validation: Optional[Means] = None
    best: Optional[Best] = None
    seconds: float = 0.0
    training_seconds: float = 0.0
    untimed_steps: int = 0
    interval_untimed_steps: int = 0
    extended: List[Dict[str, int]] = field(default_factory=list)
    average: Optional[WeightAverage] = None
    is_saved: bool = True

    def count(self, sums: StepSums, steps: int) -> None:
        """Add `steps` weight updates with these sums."""
        self.step += steps
        self.interval = self.interval + sums
        self.epoch = self.epoch + sums
        self.is_saved = False

    def end_epoch(self) -> None:
        """Finish the epoch that ends with this step, its evaluation included if one was due."""
        self.evaluated_step = self.step
        self.epoch = StepSums()
        self.is_saved = False

    def add_evaluations(self, epoch: int, validation: Optional[Means], evaluation: Optional[Means]) -> None:
        """Add what was found of the weights after an epoch, None for what was not due.

        Its checkpoint becomes the best one if it is better on the validation split.
        """
        if evaluation is not None:
            self.evaluation = evaluation
            self.best_top1 = max(self.best_top1, evaluation.top1)
        if validation is not None:
            self.validation = validation
            found = Best(self.step, epoch, validation, evaluation)
            if found.is_better(self.best):
                self.best = found

    def add_compilation(self, seconds: float, steps: int) -> None:
        """Take `steps` counted weight updates out of the speed: something was compiled in these seconds."""
        self.seconds += seconds
        self.untimed_steps += steps
        self.interval_untimed_steps += steps

    def end_interval(self) -> None:
        """Begin the next interval, after a training record was written."""
        self.interval, self.interval_seconds, self.interval_untimed_steps = StepSums(), 0.0, 0

    def interval_speed(self, images: int, images_per_step: int) -> Optional[float]:
        """Return images per second since the last training record; None where all of that time was compilation.

        Args:
            images: since then, of all processes.
            images_per_step: of all processes.
        """
        timed = images - self.interval_untimed_steps * images_per_step
        return timed / self.interval_seconds if timed > 0 else None

    def speed(self, images_per_step: int) -> Optional[float]:
        """Return images per second of all training so far; None where all of it was compilation."""
        timed = self.step - self.untimed_steps
        return timed * images_per_step / self.training_seconds if timed > 0 else None

    def seconds_left(self, steps: int) -> float:
        """To the end of `steps`, evaluations included, at the speed so far."""
        return self.seconds / self.step * (steps - self.step)

    def add_training_seconds(self, seconds: float) -> None:
        """Time that went by in weight updates and in waiting for their images."""
        self.seconds += seconds
        self.training_seconds += seconds
        self.interval_seconds += seconds

    def state(self) -> Dict[str, Any]:
        """Tensors and builtins for a checkpoint."""
        return {
            **{name: value for name, value in self.__dict__.items() if name != "average"},
            "interval": self.interval.stacked(),
            "epoch": self.epoch.stacked(),
            "evaluation": list(self.evaluation),
            "validation": None if self.validation is None else list(self.validation),
            "best": None if self.best is None else self.best.as_dict(),
        }

    @classmethod
    def from_state(cls, state: Dict[str, Any]) -> "Progress":
        """Return the inverse of `state`."""
        sums = {name: StepSums.from_stacked(state[name]) for name in ("interval", "epoch")}
        validation, best = state.get("validation"), state.get("best")  # checkpoints of earlier versions have neither
        means = {
            "evaluation": Means(*state["evaluation"]),
            "validation": None if validation is None else Means(*validation),
            "best": None if best is None else Best.from_dict(best),
        }
        return cls(**{**state, **sums, **means})


class Stopwatch:
    """Seconds between laps, on a clock that never jumps."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap or the start."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds


def is_due(every: int, step: int, updates: int) -> bool:
    """Whether one of the last `updates` steps was a multiple of `every`."""
    return step // every > (step - updates) // every
