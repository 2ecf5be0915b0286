"""Per-channel values and inputs (N, C, *spatial): checks, broadcasting, the affine transformation."""

from __future__ import annotations

from typing import Optional

import torch
import torch.fx
from torch import Tensor


@torch.fx.wrap
def check_channels(x: Tensor, channels: int) -> None:
    """Refuse an input that is not (N, channels, *spatial) of 2 to 5 dims.

    Raises:
        ValueError: as said.
    """
    if not 2 <= x.dim() <= 5:
        raise ValueError(f"got shape {tuple(x.shape)}; expected (N, C, *spatial) with 2 to 5 dims; reshape the input")
    if x.shape[1] != channels:
        raise ValueError(
            f"got {x.shape[1]} channels in shape {tuple(x.shape)}; this layer was built for {channels} channels "
            "in dim 1; build it with the number of channels that it receives"
        )


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """View (C,) values so that they broadcast over x (N, C, *spatial), in the type of x."""
    return values.to(x.dtype).reshape([1, -1] + [1] * (x.dim() - 2))


@torch.fx.wrap
def affine(x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor]) -> Tensor:
    """weight * x + bias per channel, in the type of x; None is 1 or 0."""
    if weight is None:
        return x if bias is None else x + per_channel(bias, x)
    if bias is None:
        return x * per_channel(weight, x)
    return torch.addcmul(per_channel(bias, x), x, per_channel(weight, x))
