"""The normalizations, without an affine of their own: y = Norm(x).

Each takes optional `weight` and `bias` in its forward, so that the affine transformation runs inside
the same native operation where torch has one. Statistics are float32 (float64 for float64 inputs)
whatever the compute type; the output has the input's type. Inputs are (N, C, *spatial), 2 to 5 dims.
"""

from __future__ import annotations

import math
from typing import Any, Optional, Tuple

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from normact.batch_norm import BatchNorm
from normact.channels import affine, check_channels, per_channel
from normact.norm import Groups, Norm

__all__ = ["GROUPINGS", "BatchNorm", "EvoNormS0", "FilterResponseNorm", "GroupNorm", "IdentityNorm"]

GROUPINGS = ("contiguous", "strided")


@torch.fx.wrap
def group_norm(
    x: Tensor, num_groups: int, grouping: str, eps: float, *, weight: Optional[Tensor], bias: Optional[Tensor]
) -> Tensor:
    """Normalize each group of channels of each image, then apply the affine.

    Formula: (x - mean_g) / sqrt(var_g + eps) * weight_c + bias_c, mean and population variance over the
    group's channels and all positions of one image.

    Args:
        x: (N, C, *spatial).
        num_groups: G, a divisor of C; 1 is layer norm, C is instance norm.
        grouping: "contiguous" puts channel c in group c // (C / G), "strided" in group c % G.
        eps: added to the variance.
        weight: (C,) or None.
        bias: (C,) or None.

    Raises:
        ValueError: a group holds a single value, whose normalized value would be 0 whatever it is.
    """
    channels = x.shape[1]
    check_values_per_group(x, num_groups)
    if grouping == "contiguous" or num_groups in (1, channels):
        if (weight is None) != (bias is None):  # PopTorch's group norm takes both or none
            return affine(F.group_norm(x, num_groups, None, None, eps).to(x.dtype), weight, bias)
        weight = None if weight is None else weight.to(x.dtype)
        bias = None if bias is None else bias.to(x.dtype)
        # Autocast may hand back float32.
        return F.group_norm(x, num_groups, weight, bias, eps).to(x.dtype)
    shape, spatial = x.shape, list(x.shape[2:])
    gathered = x.reshape([shape[0], channels // num_groups, num_groups] + spatial).transpose(1, 2).reshape(shape)
    y = F.group_norm(gathered, num_groups, None, None, eps).to(x.dtype)
    y = y.reshape([shape[0], num_groups, channels // num_groups] + spatial).transpose(1, 2).reshape(shape)
    return affine(y, weight, bias)


class GroupNorm(Norm):
    """Group norm; layer norm with one group, instance norm with as many groups as channels.

    Formula: (x - mean_g) / sqrt(var_g + eps), per image and group of channels.

    Args:
        channels: C.
        num_groups: G.
        grouping: "contiguous" (channel c in group c // (C / G)) or "strided" (group c % G).
        eps: added to the variance.

    Shape:
        (N, C, *spatial) -> same.

    Raises:
        ValueError: G does not divide C (at construction); wrong channels; groups of a single value.

    Source: Wu and He, "Group Normalization", 2018; Ba et al., "Layer Normalization", 2016.
    """

    def __init__(self, channels: int, num_groups: int, *, grouping: str = "contiguous", eps: float = 1e-5) -> None:
        super().__init__()
        check_groups(channels, num_groups, grouping)
        self.channels, self.num_groups, self.grouping, self.eps = channels, num_groups, grouping, eps

    def forward(self, x: Tensor, weight: Optional[Tensor] = None, bias: Optional[Tensor] = None) -> Tensor:
        check_channels(x, self.channels)
        return group_norm(x, self.num_groups, self.grouping, self.eps, weight=weight, bias=bias)

    def groups(self) -> Groups:
        return Groups(self.num_groups, self.grouping, self.eps)

    def extra_repr(self) -> str:
        return f"{self.channels}, num_groups={self.num_groups}, grouping={self.grouping}, eps={self.eps}"


@torch.fx.wrap
def check_values_per_group(x: Tensor, num_groups: int) -> None:
    """Refuse groups of one value.

    Raises:
        ValueError: as said.
    """
    if (x.shape[1] // num_groups) * math.prod(x.shape[2:]) == 1:
        raise ValueError(
            f"got shape {tuple(x.shape)} with {num_groups} groups of channels: each group holds a single value and "
            "would normalize to 0; use fewer groups or a larger image"
        )


def check_groups(channels: int, num_groups: int, grouping: str) -> None:
    """Refuse groups that do not divide the channels.

    Raises:
        ValueError: num_groups is not a divisor of channels (the message lists them), or grouping is unknown.
    """
    if grouping not in GROUPINGS:
        raise ValueError(f"grouping {grouping!r} is unknown; use one of {', '.join(GROUPINGS)}")
    if num_groups < 1 or channels % num_groups:
        divisors = ", ".join(str(d) for d in range(1, channels + 1) if channels % d == 0)
        raise ValueError(f"num_groups {num_groups} does not divide {channels} channels; use one of {divisors}")


class IdentityNorm(Norm):
    """No normalization: the layer keeps its affine and its activation, weight * x + bias.

    Shape:
        (N, C, *spatial) -> same.
    """

    not_normalized_because = "nothing is normalized"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor, weight: Optional[Tensor] = None, bias: Optional[Tensor] = None) -> Tensor:
        check_channels(x, self.channels)
        return affine(x, weight, bias)

    def evaluation_affine(self) -> Tuple[Tensor, Tensor]:
        ones = torch.ones(self.channels, dtype=torch.float64)
        return ones, torch.zeros_like(ones)


class FilterResponseNorm(Norm):
    """Filter response norm, with its thresholded linear unit in place of the activation.

    Formula: max(x / sqrt(mean_hw(x^2) + eps) * weight + bias, tau), tau per channel, 0 at first.

    Args:
        channels: C.
        eps: added to the mean square.
        threshold: whether to end with max(., tau); without it, the affine form alone.

    Shape:
        (N, C, *spatial) -> same, at least one spatial dim.

    Raises:
        ValueError: wrong channels, or no spatial dim.

    Source: Singh and Krishnan, "Filter Response Normalization Layer", 2020.
    """

    own_activation = "tlu"
    not_normalized_because = (
        "filter response norm does not centre: its value is not the normalized value of the decomposition"
    )
    tau: Optional[Tensor]

    def __init__(self, channels: int, *, eps: float = 1e-6, threshold: bool = True) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        self.register_parameter("tau", nn.Parameter(torch.zeros(channels)) if threshold else None)

    def forward(self, x: Tensor, weight: Optional[Tensor] = None, bias: Optional[Tensor] = None) -> Tensor:
        check_channels(x, self.channels)
        return filter_response_norm(x, self.eps, weight, bias, self.tau)

    def extra_repr(self) -> str:
        return f"{self.channels}, eps={self.eps}, threshold={self.tau is not None}"


@torch.fx.wrap
def filter_response_norm(
    x: Tensor, eps: float, weight: Optional[Tensor], bias: Optional[Tensor], tau: Optional[Tensor]
) -> Tensor:
    """x / sqrt(mean over positions of x^2 + eps), the affine, and max(., tau) where tau is given.

    Raises:
        ValueError: x has no spatial dim to take the mean over.
    """
    if x.dim() == 2:
        raise ValueError(f"got shape {tuple(x.shape)}: filter response norm needs at least one spatial dim")
    values = x.double() if x.dtype == torch.float64 else x.float()
    scale = torch.rsqrt((values * values).mean(dim=list(range(2, x.dim())), keepdim=True) + eps)
    y = affine(x * scale.to(x.dtype), weight, bias)
    return y if tau is None else torch.maximum(y, per_channel(tau, y))


class EvoNormS0(Norm):
    """EvoNorm-S0: a norm and an activation found together.

    Formula: x sigmoid(v x) / sqrt(var_g(x) + eps) * weight + bias, v per channel, 1 at first, var_g the
    population variance of one image's group of channels. Without the activation:
    x / sqrt(var_g(x) + eps) * weight + bias.

    Args:
        channels: C.
        num_groups: G, a divisor of C.
        grouping: "contiguous" or "strided", as in GroupNorm.
        eps: added to the variance.
        with_activation: whether the factor sigmoid(v x) is there.

    Shape:
        (N, C, *spatial) -> same.

    Raises:
        ValueError: G does not divide C (at construction); wrong channels.

    Source: Liu et al., "Evolving Normalization-Activation Layers", 2020.
    """

    own_activation = "evonorm_s0"
    ends_with_affine = True
    not_normalized_because = (
        "EvoNorm-S0 multiplies by a gate before it divides: no value is normalized and nothing else"
    )
    v: Optional[Tensor]

    def __init__(
        self,
        channels: int,
        num_groups: int,
        *,
        grouping: str = "contiguous",
        eps: float = 1e-5,
        with_activation: bool = True,
    ) -> None:
        super().__init__()
        check_groups(channels, num_groups, grouping)
        self.channels, self.num_groups, self.grouping, self.eps = channels, num_groups, grouping, eps
        self.register_parameter("v", nn.Parameter(torch.ones(channels)) if with_activation else None)

    def forward(self, x: Tensor, weight: Optional[Tensor] = None, bias: Optional[Tensor] = None) -> Tensor:
        check_channels(x, self.channels)
        return evonorm_s0(x, self.num_groups, self.grouping, self.eps, weight=weight, bias=bias, v=self.v)

    def extra_repr(self) -> str:
        return f"{self.channels}, num_groups={self.num_groups}, grouping={self.grouping}, eps={self.eps}"


@torch.fx.wrap
def evonorm_s0(
    x: Tensor,
    num_groups: int,
    grouping: str,
    eps: float,
    *,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    v: Optional[Tensor],
) -> Tensor:
    """x sigmoid(v x) / group std, then the affine; without the sigmoid where v is None."""
    images, channels, size = x.shape[0], x.shape[1], x.shape[1] // num_groups
    values = x.double() if x.dtype == torch.float64 else x.float()
    strided = grouping == "strided"
    grouped = values.reshape([images, size, num_groups, -1] if strided else [images, num_groups, size, -1])
    var = torch.var(grouped, dim=[1, 3] if strided else [2, 3], unbiased=False, keepdim=True)
    scale = torch.rsqrt(var + eps).expand(-1, grouped.shape[1], grouped.shape[2], -1)
    scale = scale.reshape([images, channels] + [1] * (x.dim() - 2)).to(x.dtype)
    gate = x if v is None else x * torch.sigmoid(per_channel(v, x) * x)
    return affine(gate * scale, weight, bias)


def share_statistics(model: nn.Module, process_group: Optional[Any], forwards_per_update: int = 1) -> None:
    """Tell every batch norm of the model over what an update's statistics are taken.

    Args:
        model: any module that holds BatchNorm layers; without one nothing happens.
        process_group: a torch.distributed group that holds this process; None: each process has its own statistics.
        forwards_per_update: forward passes in a weight update, in which the running statistics' momentum counts once.
    """
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.process_group, module.forwards_per_update = process_group, forwards_per_update


# fx records a wrapped function by the module that calls it.
torch.fx.wrap("affine")
torch.fx.wrap("check_channels")
