"""The fused kernels against an independent float64 computation."""

from __future__ import annotations

from typing import Dict, Optional, Tuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from proxynorm import kernels

NAMES = ("x", "weight", "bias", "proxy_beta", "proxy_gamma")
ACTIVATIONS = {"identity": lambda z: z, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}
EPS, PROXY_EPS = 1e-5, 0.03
# Float32 carries 6e-8; a result is a sum or product of a few such roundings, judged against the tensor's largest element.
FLOAT32_TOLERANCE = 1e-5
# One bfloat16 rounding of the result is half of 2^-7.
BFLOAT16_TOLERANCE = 2.0**-8


@pytest.fixture(scope="module", autouse=True)
def built_kernels() -> None:
    reason = kernels.why_not_fused(torch.zeros(1, 1, 1, 1), 1, "contiguous", "relu")
    if reason is not None:
        pytest.skip(reason)


def group_norm_in_float64(x: Tensor, num_groups: int, grouping: str) -> Tensor:
    """Written from the definition, with no function of torch.nn."""
    images, channels = x.shape[:2]
    members = torch.arange(channels)
    group_of = members % num_groups if grouping == "strided" else members // (channels // num_groups)
    y = torch.empty_like(x)
    for group in range(num_groups):
        part = x[:, group_of == group].reshape(images, -1)
        mean = part.mean(1, keepdim=True)
        var = ((part - mean) ** 2).mean(1, keepdim=True)
        y[:, group_of == group] = ((part - mean) / torch.sqrt(var + EPS)).reshape(x[:, group_of == group].shape)
    return y


def proxy_in_float64(activation: str, gamma: Tensor, beta: Tensor, proxy_beta: Tensor, proxy_gamma: Tensor) -> Tuple[Tensor, Tensor]:
    """ReLU from the truncated Gaussian's first two moments; the others by a midpoint rule of 1000 nodes over [-9, 9]."""
    m, s = beta + gamma * proxy_beta, (gamma * (1 + proxy_gamma)).abs()
    if activation == "relu":
        normal = torch.distributions.Normal(0.0, 1.0)
        above, density = normal.cdf(m / s), torch.exp(normal.log_prob(m / s))
        mean, square = m * above + s * density, (m * m + s * s) * above + m * s * density
        return mean, 1 / torch.sqrt(square - mean**2 + PROXY_EPS)
    z = (torch.arange(1000, dtype=torch.float64) + 0.5) * (18 / 1000) - 9
    weight = torch.exp(-0.5 * z * z)
    weight = (weight / weight.sum())[:, None]
    value = ACTIVATIONS[activation](m + s * z[:, None])
    mean = (weight * value).sum(0)
    return mean, 1 / torch.sqrt((weight * (value - mean) ** 2).sum(0) + PROXY_EPS)


def reference(
    tensors: Dict[str, Tensor], activation: str, num_groups: int, grouping: str, proxy: bool
) -> Tuple[Tensor, Dict[str, Tensor]]:
    """Output and leaves of a float64 computation of the same numbers."""
    leaves = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
    shape = [1, -1] + [1] * (tensors["x"].dim() - 2)
    y = group_norm_in_float64(leaves["x"], num_groups, grouping)
    out = ACTIVATIONS[activation](leaves["weight"].reshape(shape) * y + leaves["bias"].reshape(shape))
    if proxy:
        mean, inverse_std = proxy_in_float64(activation, *(leaves[name] for name in NAMES[1:]))
        out = (out - mean.reshape(shape)) * inverse_std.reshape(shape)
    return out, leaves


def fused(tensors: Dict[str, Tensor], activation: str, num_groups: int, grouping: str, proxy: bool, **options: bool) -> Tensor:
    parameters = [tensors[name] for name in NAMES[1:]]
    mean, inverse_std = (
        kernels.fused_proxy_statistics(activation, *parameters, PROXY_EPS) if proxy else (None, None)
    )
    return kernels.fused_norm_act(
        tensors["x"], parameters[0], parameters[1], mean, inverse_std,
        num_groups=num_groups, grouping=grouping, activation=activation, eps=EPS, **options,
    )  # fmt: skip


def example(shape: Tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> Dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).mul(1.5).add(0.3).to(dtype)
    if layout == "channels_last":
        x = x.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape), torch.contiguous_format))
    elif layout == "transposed":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    channels = shape[1]
    rows = torch.randn(4, channels, generator=generator)
    tensors = {
        "x": x,
        "weight": 1 + 0.3 * rows[0],
        "bias": 0.3 * rows[1],
        "proxy_beta": 0.2 * rows[2],
        "proxy_gamma": 0.2 * rows[3],
    }
    return {name: t.detach().requires_grad_() for name, t in tensors.items()}


def scaled_difference(got: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest element, or over 1, the size of the gradient fed in: some sums cancel to zero."""
    assert got.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    with torch.no_grad():
        return float((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1.0))


def check_against_float64(
    tensors: Dict[str, Tensor], activation: str, num_groups: int, grouping: str = "contiguous", proxy: bool = True,
    tolerance: Optional[float] = None,
) -> None:
    dtype = tensors["x"].dtype
    tolerance = tolerance or (FLOAT32_TOLERANCE if dtype == torch.float32 else BFLOAT16_TOLERANCE)
    out = fused(tensors, activation, num_groups, grouping, proxy)
    expected, leaves = reference(tensors, activation, num_groups, grouping, proxy)
    assert out.dtype == dtype
    assert scaled_difference(out, expected) <= tolerance
    seed = torch.Generator().manual_seed(7)
    gradient = torch.randn(out.shape, generator=seed).to(dtype)
    out.backward(gradient)
    expected.backward(gradient.double())
    for name in NAMES:
        if not proxy and name.startswith("proxy"):
            continue
        got = tensors[name].grad
        assert got is not None and got.dtype == tensors[name].dtype, name
        # A parameter's gradient sums what x's rounding left: float32 whatever the type of x.
        limit = tolerance if name == "x" else FLOAT32_TOLERANCE
        assert scaled_difference(got, leaves[name].grad) <= limit, name


CASES = [
    # shape, num_groups, layout
    ((2, 16, 9, 7), 4, "contiguous"),
    ((2, 16, 9, 7), 4, "channels_last"),
    ((3, 32, 5, 5), 1, "contiguous"),
    ((3, 32, 5, 5), 1, "channels_last"),
    ((2, 6, 4, 4), 6, "contiguous"),
    ((2, 6, 4, 4), 6, "channels_last"),
    ((2, 64, 40, 40), 8, "contiguous"),
    ((2, 192, 20, 20), 8, "channels_last"),
    ((2, 24, 33, 17), 3, "transposed"),
    ((4, 40), 5, "contiguous"),
    ((2, 12, 30), 4, "contiguous"),
    ((2, 8, 3, 4, 5), 2, "contiguous"),
    ((2, 8, 3, 4, 5), 2, "channels_last"),
    ((2, 20, 1, 1), 4, "contiguous"),
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape, num_groups, layout", CASES)
def test_output_and_all_gradients_equal_float64(shape: Tuple[int, ...], num_groups: int, layout: str, activation: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for grouping in ("contiguous", "strided"):
            for proxy in (True, False):
                check_against_float64(example(shape, 1, dtype, layout), activation, num_groups, grouping, proxy)
