"""The layer over groups in ordinary torch operations: what the fused kernels compute, on every device and type."""

from __future__ import annotations

from typing import Optional

import torch.fx
from torch import Tensor

from normact.activations import Activation, activation_function
from normact.channels import affine
from normact.norms import group_norm


def reference_norm_act(
    x: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    proxy_mean: Optional[Tensor],
    proxy_inverse_std: Optional[Tensor],
    *,
    num_groups: int,
    grouping: str,
    activation: Activation,
    eps: float,
) -> Tensor:
    """Return what the fused kernels compute, in ordinary torch operations.

    Formula: (phi(weight GN(x) + bias) - proxy_mean) * proxy_inverse_std, per channel.

    Args:
        x: (N, C, *spatial).
        weight: (C,), or None for 1.
        bias: (C,), or None for 0.
        proxy_mean: (C,), or None for no Proxy Normalization.
        proxy_inverse_std: (C,), None together with proxy_mean.
        num_groups: 1 is layer norm, C is instance norm.
        grouping: "contiguous" or "strided".
        activation: a name or a function.
        eps: of the norm.

    Dtype: elementwise work in the type of x, with the parameters cast to it; statistics in float32.
    """
    z = activation_function(activation)(group_norm(x, num_groups, grouping, eps, weight=weight, bias=bias))
    if proxy_mean is None or proxy_inverse_std is None:
        return z
    return proxy_normalize(z, proxy_mean, proxy_inverse_std)


@torch.fx.wrap
def proxy_normalize(z: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
    """(z - mean) * inverse_std per channel, as one multiply-add that saves nothing but z for backward."""
    return affine(z, inverse_std, -mean * inverse_std)


# fx records a wrapped function by the module that calls it.
torch.fx.wrap("affine")
