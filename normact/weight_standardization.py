"""Weight standardization: the convolution of the "+ws" norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_STD_EPS = 1e-5


class WeightStandardizedConv2d(nn.Conv2d):
    """A convolution whose kernel has mean 0 and standard deviation 1 for each output channel.

    Formula: w^_o = (w_o - mean(w_o)) / (std(w_o) + 1e-5), mean and population standard deviation over
    (in, kh, kw). Parameters are those of nn.Conv2d, under the same names. Use it in front of a norm.

    Args:
        args: as nn.Conv2d.
        kwargs: as nn.Conv2d.

    Shape:
        (N, C_in, H, W) -> (N, C_out, H', W').

    Dtype: the kernel is standardized in float32 (float64 for float64 weights), then cast to the input's compute type.

    Raises:
        ValueError: a kernel of a single weight per output channel, which would standardize to 0.

    Source: Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", 2019.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.weight[0].numel() == 1:
            raise ValueError(
                f"a kernel of shape {tuple(self.weight.shape)} has one weight per output channel, which standardizes "
                "to 0; use a plain convolution there"
            )

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight if self.weight.dtype == torch.float64 else self.weight.float()
        return self._conv_forward(input, standardized(weight).to(self.weight.dtype), self.bias)


def standardized(weight: Tensor) -> Tensor:
    """(w - mean) / (std + 1e-5) for each output channel of a kernel (O, I, kh, kw), std of the population."""
    std, mean = torch.std_mean(weight, dim=[1, 2, 3], unbiased=False, keepdim=True)
    return (weight - mean) / (std + _STD_EPS)
