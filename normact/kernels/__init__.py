"""The fused forms of norm + affine + activation + Proxy Normalization, and where they apply.

On a CPU: C++ (cpu/), built at first use. On a CUDA GPU: Triton (cuda/) below the same operators and gradients.
Everything else is the reference's.
"""

from __future__ import annotations

from typing import Optional, Tuple

import torch
from torch import Tensor

from normact.kernels.arguments import LayerArguments
from normact.kernels.operators import why_not_loaded, why_not_loaded_on_cuda
from normact.kernels.recompute import attach_recipe, is_recomputed, recomputed_activations

__all__ = ["fused_norm_act", "fused_proxy_statistics", "recomputed_activations", "why_not_fused"]

FUSED_ACTIVATIONS = ("identity", "relu", "silu", "gelu")
FUSED_DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
# Offsets inside an image are 32-bit numbers on a GPU.
MOST_GPU_IMAGE_VALUES = 2**30


def why_not_fused(x: Tensor, num_groups: int, grouping: str, activation: str) -> Optional[str]:
    """None where the fused form applies to x; else the reason in plain words.

    Args:
        x: (N, C, *spatial), 2 to 5 dims.
        num_groups: 1 is layer norm, C is instance norm.
        grouping: "contiguous" or "strided".
        activation: its name.
    """
    if x.device.type not in FUSED_DTYPES:
        return f"x is on {x.device.type}; the fused form runs on a CPU or a CUDA GPU"
    if x.dtype not in FUSED_DTYPES[x.device.type]:
        return f"x is {x.dtype}; the fused form computes float32 and bfloat16, on a GPU float16 too"
    if activation not in FUSED_ACTIVATIONS:
        return f"activation {activation!r} has no fused form; {', '.join(FUSED_ACTIVATIONS)} have"
    if not 2 <= x.dim() <= 5:
        return f"x has {x.dim()} dims; the fused form takes (N, C, *spatial) with 2 to 5"
    if grouping not in ("contiguous", "strided"):
        return f"grouping {grouping!r} is neither contiguous nor strided"
    if num_groups < 1 or x.shape[1] % num_groups:
        return f"num_groups {num_groups} does not divide {x.shape[1]} channels"
    if x.device.type == "cpu":
        return why_not_loaded()
    if x.shape[1:].numel() > MOST_GPU_IMAGE_VALUES:
        return f"an image has {x.shape[1:].numel()} values; the fused form on a GPU takes up to {MOST_GPU_IMAGE_VALUES}"
    return why_not_loaded_on_cuda()


def fused_norm_act(
    x: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    proxy_mean: Optional[Tensor],
    proxy_inverse_std: Optional[Tensor],
    *,
    num_groups: int,
    grouping: str,
    activation: str,
    eps: float,
    recompute: bool = False,
) -> Tensor:
    """Norm, affine, activation and Proxy Normalization in one operator.

    Formula: y = (x - mean_g) / sqrt(var_g + eps) per image and group, out = (phi(weight_c y + bias_c) - m_c) r_c.

    Backward saves x and two numbers per (image, group), and computes the rest again. Gradients reach x, weight,
    bias, proxy_mean and proxy_inverse_std. A backward with create_graph is in ordinary operations, which can
    be differentiated again (normact.kernels.transforms). There is no forward-mode derivative: for it the layer computes
    by its reference operations.

    Args:
        x: (N, C, *spatial).
        weight: gamma, (C,), or None for 1.
        bias: beta, (C,), or None for 0.
        proxy_mean: m, (C,), or None for no Proxy Normalization.
        proxy_inverse_std: r > 0, (C,), None together with proxy_mean.
        num_groups: 1 is layer norm, C is instance norm.
        grouping: "contiguous" (channel c in group c // (C / G)) or "strided" (c % G).
        activation: one of FUSED_ACTIVATIONS.
        eps: added to the group's variance.
        recompute: inside `recomputed_activations()`, later layers do not keep this output for their backward.

    Shape:
        (N, C, *spatial) -> same, channels_last where x is, else contiguous.

    Dtype: that of x, float32 or bfloat16 (on a GPU float16 too); arithmetic and statistics are float32 or better.
    Parameters of any type.

    Source: Labatie et al. 2021, Eq. 7.
    """
    strided = grouping == "strided"
    layer = LayerArguments(weight, bias, proxy_mean, proxy_inverse_std, num_groups, strided, activation)
    out, statistics = torch.ops.normact.norm_act(x, *layer, eps)
    if recompute and is_recomputed(out):
        attach_recipe(out, x, statistics, layer)
    return out


def fused_proxy_statistics(
    activation: str,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    proxy_beta: Optional[Tensor],
    proxy_gamma: Optional[Tensor],
    eps: float,
) -> Tuple[Tensor, Tensor]:
    """Proxy mean and 1/std per channel, as normact.proxy_statistics with method "exact", in one operator.

    Args:
        activation: one of FUSED_ACTIVATIONS.
        weight: gamma, (C,), or None for 1.
        bias: beta, (C,), or None for 0.
        proxy_beta: (C,), or None for 0.
        proxy_gamma: (C,), or None for 0.
        eps: added to the variance of phi.

    Shape:
        (C,) each -> (C,), (C,), float32.

    Raises:
        RuntimeError: all four are None, so that the number of channels is unknown.

    Source: Labatie et al. 2021, Eq. 7.
    """
    mean, inverse_std, _ = torch.ops.normact.proxy_statistics(activation, weight, bias, proxy_beta, proxy_gamma, eps)
    return mean, inverse_std
