"""An independent float64 computation of what the fused kernels compute, and the comparison of the two."""

from __future__ import annotations

from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from normact import kernels

NAMES = ("x", "weight", "bias", "proxy_beta", "proxy_gamma")
ACTIVATIONS = {"identity": lambda z: z, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}
EPS, PROXY_EPS = 1e-5, 0.03
# Float32 carries 6e-8; a result is a few such roundings, judged against the tensor's largest element.
FLOAT32_TOLERANCE = 1e-5
# One bfloat16 rounding of the result is half of 2^-7.
BFLOAT16_TOLERANCE = 2.0**-8
SHORT_EXPONENTIAL_TOLERANCE = 5e-4  # where bfloat16 is stored: two functions of 2^-13 each, in sums that partly cancel


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


def proxy_in_float64(
    activation: str, gamma: Tensor, beta: Tensor, proxy_beta: Tensor, proxy_gamma: Tensor
) -> Tuple[Tensor, Tensor]:
    """ReLU from the truncated Gaussian's two moments; the others by a midpoint rule of 1000 nodes over [-9, 9]."""
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


def fused(
    tensors: Dict[str, Tensor], activation: str, num_groups: int, grouping: str, proxy: bool, **options: bool
) -> Tensor:
    parameters = [tensors[name] for name in NAMES[1:]]
    mean, inverse_std = kernels.fused_proxy_statistics(activation, *parameters, PROXY_EPS) if proxy else (None, None)  # type: ignore[call-arg]
    return kernels.fused_norm_act(
        tensors["x"], parameters[0], parameters[1], mean, inverse_std,
        num_groups=num_groups, grouping=grouping, activation=activation, eps=EPS, **options,
    )  # fmt: skip


def example(
    shape: Tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32, layout: str = "contiguous"
) -> Dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).mul(1.5).add(0.3).to(dtype)
    if layout == "channels_last":
        x = x.contiguous(
            memory_format={4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape), torch.contiguous_format)
        )
    elif layout == "transposed":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "sliced":  # every second channel of a larger tensor
        x = torch.stack((x, x), 2).flatten(1, 2)[:, ::2]
    elif layout == "unaligned":  # contiguous, but its memory starts four or two bytes behind an aligned address
        x = torch.cat((x.new_zeros(1), x.flatten()))[1:].view(shape)
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
    """Largest difference over the largest element, or over 1, the size of the gradient fed in: some sums cancel."""
    assert got.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    with torch.no_grad():
        return float((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1.0))


def check_against_float64(
    tensors: Dict[str, Tensor],
    activation: str,
    num_groups: int,
    grouping: str = "contiguous",
    proxy: bool = True,
    tolerance: Optional[float] = None,
    gradient_layout: str = "contiguous",
) -> None:
    """Output and the five gradients of the fused form against float64."""
    dtype = tensors["x"].dtype
    tolerance = tolerance or (FLOAT32_TOLERANCE if dtype == torch.float32 else BFLOAT16_TOLERANCE)
    out = fused(tensors, activation, num_groups, grouping, proxy)
    expected, leaves = reference(tensors, activation, num_groups, grouping, proxy)
    assert out.dtype == dtype
    assert scaled_difference(out, expected) <= tolerance
    seed = torch.Generator().manual_seed(7)
    gradient = torch.randn(out.shape, generator=seed).to(dtype)
    if gradient_layout == "expanded":  # one number per image, as a sum's backward gives it: strides of zero
        gradient = (
            torch.randn(out.shape[0], generator=seed).to(dtype).view(-1, *[1] * (out.dim() - 1)).expand(out.shape)
        )
    elif gradient_layout == "transposed":
        gradient = gradient.transpose(0, 1).contiguous().transpose(0, 1)
    out.backward(gradient)
    expected.backward(gradient.double())
    for name in NAMES:
        if not proxy and name.startswith("proxy"):
            continue
        got = tensors[name].grad
        assert got is not None and got.dtype == tensors[name].dtype, name
        # A parameter's gradient sums what x's rounding left: float32 whatever the type of x, but for the exponential.
        is_short = dtype == torch.bfloat16 and activation in ("silu", "gelu")
        limit = tolerance if name == "x" else SHORT_EXPONENTIAL_TOLERANCE if is_short else FLOAT32_TOLERANCE
        assert scaled_difference(got, leaves[name].grad) <= limit, name
