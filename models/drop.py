"""Dropout and stochastic depth: leave out features, or the residual branch of a block, for some images."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn


class Drop(nn.Module):
    """Multiply each image's values by random factors in training.

    out_n = x_n * b_n / (1 - rate),   b_n ~ Bernoulli(1 - rate);   out = x in evaluation

    One column is one factor for all of an image's values: stochastic depth. As many columns as channels are a factor
    for each: dropout of features.

    The factors may be handed over before a forward pass. They then need not depend on the generators of a device or a
    process, so that an image is treated the same wherever it is computed. Without them they are the dropout of a tensor
    of ones, because that is the random operation that every tracing compiler has with a fresh draw at each call.

    Args:
        rate: probability of a factor of 0, 0 <= rate < 1.
        columns: factors for each image: 1, or the channels of x.

    Attributes:
        factors: (N, columns), values 0 or 1 / (1 - rate); None to draw them here.

    Shape: (N, C, *spatial) -> same

    Source: Srivastava et al., "Dropout", 2014; Huang et al., "Deep Networks with Stochastic Depth", 2016.
    """

    def __init__(self, rate: float, columns: int = 1) -> None:
        super().__init__()
        self.rate = rate
        self.columns = columns
        self.factors: Optional[torch.Tensor] = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        factors = self.factors
        if factors is None:
            factors = F.dropout(x.new_ones((x.shape[0], self.columns)), self.rate, training=True)
        return x * factors.to(x.dtype).view(x.shape[0], self.columns, *[1] * (x.dim() - 2))

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}, columns={self.columns}"
