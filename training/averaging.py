"""Averages of the weights over time: what is evaluated, and given away, in place of the last weights."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional

import torch
from torch import Tensor

from configs.schema.learning import AveragingConfig
from training.weights import fitting


class WeightAverage:
    """An exponential average of a network's state, over epochs or over steps.

    average_n = sum_k decay^(n - k) w_k / sum_k decay^(n - k),   k = 1 ... n

    which is average += (1 - decay) / (1 - decay^n) (w_n - average): the first is w_1 itself, the first few are nearly
    plain means, and long averages forget the beginning; no start value has a weight of its own.

    Everything that is floating point is averaged, batch norm's running statistics like the weights. (They are those of
    the weights of their time, not of the averaged weights; over the flat end of training the two agree.)

    The loop owns one, updates it after an epoch or a weight update with `Session.weights()`, evaluates inside
    `Session.evaluating_with(average.weights)`, and saves `state()` with each checkpoint. Processes hold equal weights,
    so each keeps its own equal average and nothing is sent.

    Args:
        decay: what is left of a weight's share after one more update, 0 < decay < 1.

    Source: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; once per epoch with
        decay .97: Masters et al., "Making EfficientNet More Efficient", 2021.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights: Dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Take in the weights of one more time, on whatever device they are; they are copied, not kept."""
        self.updates += 1
        if self.updates == 1:
            self.weights = {name: tensor.detach().clone() for name, tensor in weights.items()}
            return
        share = (1.0 - self.decay) / (1.0 - self.decay**self.updates)
        averages: List[Tensor] = []
        news: List[Tensor] = []
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                averages.append(self.weights[name])
                news.append(tensor.detach())
            else:
                self.weights[name].copy_(tensor)
        torch._foreach_lerp_(averages, news, share)

    def state(self) -> Dict[str, Any]:
        """Tensors and builtins for a checkpoint: copies on the CPU, which later updates leave alone."""
        weights = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in self.weights.items()}
        return {"updates": self.updates, "weights": weights}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], decay: float, like: Mapping[str, Tensor]) -> WeightAverage:
        """Continue from `state()`, on the devices and in the memory layouts of `like`, the network's state.

        Raises:
            CheckpointError: they are the weights of another network.
        """
        average = cls(decay)
        average.updates = state["updates"]
        if average.updates:
            average.weights = {
                name: torch.empty_like(like[name]).copy_(tensor)
                for name, tensor in fitting(state["weights"], like).items()
            }
        return average


def build_average(config: AveragingConfig) -> Optional[WeightAverage]:
    """Return the average that a configuration asks for; None for none."""
    return None if config.decay is None else WeightAverage(config.decay)
