"""Variance scaling with a truncated normal distribution, the initialization of both families of networks."""

from __future__ import annotations

import math

import torch
from torch import nn

# A standard normal variable cut at +-2 keeps this share of its standard deviation.
_STD_OF_CUT_NORMAL = 0.87962566103423978


def truncated_normal_(weight: torch.Tensor, *, scale: float, fan: int) -> torch.Tensor:
    """Fill `weight` from a normal distribution of variance scale / fan *after* the cut at two standard deviations.

    w ~ N(0, sigma^2) cut to [-2 sigma, 2 sigma], sigma = sqrt(scale / fan) / 0.8796

    Args:
        weight: the tensor to fill, in place.
        scale: the variance of a sum of `fan` products of a weight and a unit-variance input.
        fan: `fan_in(weight)` keeps the forward variance, `fan_out(weight)` the backward one.
    """
    std = math.sqrt(scale / fan) / _STD_OF_CUT_NORMAL
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def fan_in(weight: torch.Tensor) -> int:
    """Return inputs summed by one output: (in_channels / groups) x kernel area, or in_features."""
    return weight[0].numel()


def fan_out(weight: torch.Tensor) -> int:
    """Return outputs that one input of an ungrouped layer reaches: out_channels x kernel area, or out_features."""
    return weight.shape[0] * weight[0][0].numel()
