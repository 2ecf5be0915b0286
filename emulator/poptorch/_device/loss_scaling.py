"""Automatic loss scaling: the device watches its float16 gradients and doubles or halves the loss scale.

The loss is multiplied by s f: s is the optimizer's loss_scaling, f a factor that starts at 1. After each weight update

    f <- f / 2  where more than the proportion t of the gradients' values lie above e max(float16), else  f <- 2 f
"""

from __future__ import annotations

from typing import Any, Optional

import torch

from ..errors import backend_error

FACTOR_NAME = "lossScaleUpdateFactor"
_LARGEST = 65504.0  # of float16
_PREFIX = "automaticLossScalingSettings."


class AutomaticLossScaling:
    """The factor f and the counts that decide its next step.

    Args:
        edge: e.
        threshold: t.
        period: weight updates between two changes of f.
    """

    def __init__(self, edge: float, threshold: float, period: int) -> None:
        for name, value in (("binEdgeLocation", edge), ("thresholdUpperCountProportion", threshold)):
            if not 0 <= value <= 1:
                raise backend_error(
                    f"[AutomaticLossScale transform] Out of range value for '{name}'. The current value is {value}, "
                    "but it should be in the range [0, 1]."
                )
        self._edge = edge * _LARGEST
        self._threshold = threshold
        self._period = period
        self._updates = 0
        self._above = 0
        self._counted = 0
        self.factor = torch.tensor(1.0)

    @staticmethod
    def of(options: Any) -> Optional[AutomaticLossScaling]:
        """As the options say; None where it is off."""
        chosen = options._Popart.options
        if not chosen.get(f"{_PREFIX}enabled", False):
            return None
        return AutomaticLossScaling(
            chosen.get(f"{_PREFIX}binEdgeLocation", 0.125),
            chosen.get(f"{_PREFIX}thresholdUpperCountProportion", 1e-7),
            chosen.get(f"{_PREFIX}updatePeriod", 1),
        )

    def watch(self, gradient: torch.Tensor) -> None:
        """Count the values of a gradient, if it is in float16; others have no influence."""
        if gradient.dtype == torch.float16:
            self._above += int((gradient.detach().float().abs() > self._edge).sum())
            self._counted += gradient.numel()

    def update(self) -> None:
        """Note that a weight update was done.

        Raises:
            Error: no gradient was in float16.
        """
        if not self._counted:
            raise backend_error(
                "[AutomaticLossScale transform] No tracked gradient tensors of type fp16 were found: automatic loss "
                "scaling is for models in half precision"
            )
        self._updates += 1
        if self._updates % self._period == 0:
            self.factor = self.factor * (0.5 if self._above > self._threshold * self._counted else 2.0)
            self._above = self._counted = 0
