"""Stochastic depth: leave out the residual branch of a block for some images of the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class DropPath(nn.Module):
    """Multiply each image's residual branch by 0 with probability `rate`, else by 1 / (1 - rate).

    out_n = x_n * b_n / (1 - rate),   b_n ~ Bernoulli(1 - rate), one draw for each image;   out = x in evaluation

    The factors are the dropout of a tensor of ones, because dropout is the random operation that every tracing
    compiler has with a fresh draw at each call and a seed of its own on each replica.

    Args:
        rate: probability of leaving the branch out, 0 <= rate < 1.

    Shape: (N, C, H, W) -> same

    Source: Huang et al., "Deep Networks with Stochastic Depth", 2016.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        return x * F.dropout(x.new_ones((x.shape[0], 1, 1, 1)), self.rate, training=True)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}"
