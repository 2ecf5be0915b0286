"""What is measured of images: sums, which add up, and their means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Sequence, Union

import torch
from torch import Tensor

Number = Union[int, float, Tensor]


class Means(NamedTuple):
    """Mean loss per image, and top-1 and top-5 accuracy as fractions."""

    loss: float
    top1: float
    top5: float


@dataclass(frozen=True)
class StepSums:
    """Sums over images, which add up over micro-batches, steps and processes; `means` divides, once.

    `gradient_norm` is a sum over weight updates, to which each process adds its equal share of an update's norm: the
    sum over processes counts it once. It is 0 where no gradient is clipped.

    The fields are Python numbers or scalar tensors (float64 and int64), so that adding up steps on an accelerator waits
    for nothing.
    """

    loss_sum: Number = 0.0
    top1: Number = 0
    top5: Number = 0
    images: Number = 0
    gradient_norm: Number = 0.0

    @classmethod
    def from_step(cls, outputs: Sequence[Tensor]) -> StepSums:
        """From the (loss_sum, top1, top5, images) of a training.classifier.Classifier.

        Tensors of any shape are summed, as devices with several replicas return one value for each. The loss is widened
        to float64, because float32 sums over an epoch of a million images lose digits.
        """
        loss_sum, top1, top5, images = outputs
        return cls(loss_sum.detach().double().sum(), top1.long().sum(), top5.long().sum(), images.long().sum())

    def __add__(self, other: StepSums) -> StepSums:
        return StepSums(
            self.loss_sum + other.loss_sum,
            self.top1 + other.top1,
            self.top5 + other.top5,
            self.images + other.images,
            self.gradient_norm + other.gradient_norm,
        )

    def stacked(self) -> Tensor:
        """Return one float64 tensor (5,), to all-reduce or to save; counts are exact up to 2^53."""
        fields = (self.loss_sum, self.top1, self.top5, self.images, self.gradient_norm)
        device = next((field.device for field in fields if isinstance(field, Tensor)), None)
        return torch.stack([torch.as_tensor(field, dtype=torch.float64, device=device) for field in fields])

    @classmethod
    def from_stacked(cls, stacked: Tensor) -> StepSums:
        """Return the inverse of `stacked`, as Python numbers. Checkpoints of earlier versions hold the first four."""
        loss_sum, top1, top5, images, *gradient_norm = stacked.tolist()
        return cls(loss_sum, int(top1), int(top5), int(images), *gradient_norm)

    def means(self) -> Means:
        """Divide by the number of images.

        Raises:
            ValueError: no image was counted.
        """
        images = int(self.images)
        if images == 0:
            raise ValueError("no image was counted, so there is no mean: no image was read, or every label is padding")
        return Means(float(self.loss_sum) / images, int(self.top1) / images, int(self.top5) / images)
