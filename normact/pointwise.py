"""DyT and Derf: in the place of a norm, a bounded function of each value by itself; no statistics of anything."""

from __future__ import annotations

from typing import Optional

import torch
import torch.fx
from torch import Tensor, nn

from normact.channels import affine, check_channels
from normact.norm import Norm

_BOUNDED = "each value is bounded by itself: nothing is normalized"
ALPHA = 0.5  # at first, as both papers have it outside language models


class DynamicTanh(Norm):
    """DyT.

    Formula: tanh(alpha x) * weight + bias, alpha one learned number of the layer, 0.5 at first.

    Args:
        channels: C.

    Shape:
        (N, C, *spatial) -> same.

    Source: Zhu et al., "Transformers without Normalization", 2025, section 4.
    """

    not_normalized_because = _BOUNDED

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.alpha = nn.Parameter(torch.tensor(ALPHA))

    def forward(self, x: Tensor, weight: Optional[Tensor] = None, bias: Optional[Tensor] = None) -> Tensor:
        check_channels(x, self.channels)
        return affine(torch.tanh(self.alpha.to(x.dtype) * x), weight, bias)

    def extra_repr(self) -> str:
        return f"{self.channels}"


class DynamicErf(Norm):
    """Derf.

    Formula: erf(alpha x + s) * weight + bias, erf(z) = 2 / sqrt(pi) times the integral of exp(-t^2) from 0 to z; alpha
    and s one learned number each of the layer, 0.5 and 0 at first.

    Args:
        channels: C.

    Shape:
        (N, C, *spatial) -> same.

    Source: Chen et al., "Stronger Normalization-Free Transformers", 2025, section 5.
    """

    not_normalized_because = _BOUNDED

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.alpha = nn.Parameter(torch.tensor(ALPHA))
        self.shift = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, weight: Optional[Tensor] = None, bias: Optional[Tensor] = None) -> Tensor:
        check_channels(x, self.channels)
        return affine(torch.erf(self.alpha.to(x.dtype) * x + self.shift.to(x.dtype)), weight, bias)

    def extra_repr(self) -> str:
        return f"{self.channels}"


# fx records a wrapped function by the module that calls it.
torch.fx.wrap("affine")
torch.fx.wrap("check_channels")
