"""Proxy statistics in Triton: what csrc/proxy_statistics.cpp computes, a block of channels a program.

Mean and 1/std of phi(X), X ~ N(m, s^2) with m = beta + gamma proxy_beta and s = |gamma (1 + proxy_gamma)|, and their
slopes in m and s. ReLU and identity in closed form; SiLU and GELU by the trapezoid over z in [-8, 8] with 129 nodes.
"""

# ruff: noqa: N803  compile-time constants are capitals in Triton

from __future__ import annotations

from typing import Tuple

import triton
import triton.language as tl

from normact.kernels.cuda.elements import channel_rows, normal_distribution, value_and_slope

SMALLEST_SCALE = tl.constexpr(1e-6)
# Sum over the nodes of exp(-z^2 / 2): sqrt(2 pi) / 0.125 to float32.
NODE_WEIGHT_SUM = tl.constexpr(20.053026)


@triton.jit
def proxy_forward(
    mean: tl.tensor,
    inverse_std: tl.tensor,
    slopes: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    proxy_beta: tl.tensor,
    proxy_gamma: tl.tensor,
    channels: tl.tensor,
    eps: tl.tensor,
    ACTIVATION: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
) -> None:
    """Mean, 1/std, and slopes (4, C): of the mean in m and s, of 1/std in m and s."""
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_live = channel < channels
    _gamma, m, signed_scale, _ = proxy_moments(weight, bias, proxy_beta, proxy_gamma, channel, is_live)
    s = tl.maximum(tl.abs(signed_scale), SMALLEST_SCALE)
    if ACTIVATION == "identity":
        average, variance = m, s * s
        mean_by_m, mean_by_s = tl.zeros_like(m) + 1.0, tl.zeros_like(m)
        variance_by_m, variance_by_s = tl.zeros_like(m), 2.0 * s
    elif ACTIVATION == "relu":
        average, variance, mean_by_m, mean_by_s, variance_by_m, variance_by_s = relu_statistics(m, s)
    else:
        average, variance, mean_by_m, mean_by_s, variance_by_m, variance_by_s = quadrature(m, s, ACTIVATION)
    inverse = 1.0 / tl.sqrt(variance + eps)
    by_variance = -0.5 * inverse * inverse * inverse
    tl.store(mean + channel, average, mask=is_live)
    tl.store(inverse_std + channel, inverse, mask=is_live)
    tl.store(slopes + channel, mean_by_m, mask=is_live)
    tl.store(slopes + channels + channel, mean_by_s, mask=is_live)
    tl.store(slopes + 2 * channels + channel, by_variance * variance_by_m, mask=is_live)
    tl.store(slopes + 3 * channels + channel, by_variance * variance_by_s, mask=is_live)


@triton.jit
def proxy_backward(
    gradients: tl.tensor,
    grad_mean: tl.tensor,
    grad_inverse_std: tl.tensor,
    slopes: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    proxy_beta: tl.tensor,
    proxy_gamma: tl.tensor,
    channels: tl.tensor,
    BLOCK_CHANNELS: tl.constexpr,
) -> None:
    """Gradients (4, C) of gamma, beta, proxy_beta and proxy_gamma from the slopes."""
    channel = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    is_live = channel < channels
    gamma, _, signed_scale, stretch = proxy_moments(weight, bias, proxy_beta, proxy_gamma, channel, is_live)
    by_m = tl.zeros([BLOCK_CHANNELS], tl.float32)
    by_s = tl.zeros([BLOCK_CHANNELS], tl.float32)
    if grad_mean is not None:
        g = tl.load(grad_mean + channel, mask=is_live, other=0.0).to(tl.float32)
        by_m += g * tl.load(slopes + channel, mask=is_live, other=0.0)
        by_s += g * tl.load(slopes + channels + channel, mask=is_live, other=0.0)
    if grad_inverse_std is not None:
        g = tl.load(grad_inverse_std + channel, mask=is_live, other=0.0).to(tl.float32)
        by_m += g * tl.load(slopes + 2 * channels + channel, mask=is_live, other=0.0)
        by_s += g * tl.load(slopes + 3 * channels + channel, mask=is_live, other=0.0)
    shift = tl.zeros([BLOCK_CHANNELS], tl.float32)
    if proxy_beta is not None:
        shift = tl.load(proxy_beta + channel, mask=is_live, other=0.0).to(tl.float32)
    # Below its bound s does not depend on the parameters.
    sign = tl.where(signed_scale >= SMALLEST_SCALE, 1.0, tl.where(signed_scale <= -SMALLEST_SCALE, -1.0, 0.0))
    tl.store(gradients + channel, by_m * shift + by_s * sign * stretch, mask=is_live)
    tl.store(gradients + channels + channel, by_m, mask=is_live)
    tl.store(gradients + 2 * channels + channel, by_m * gamma, mask=is_live)
    tl.store(gradients + 3 * channels + channel, by_s * sign * gamma, mask=is_live)


@triton.jit
def proxy_moments(
    weight: tl.tensor,
    bias: tl.tensor,
    proxy_beta: tl.tensor,
    proxy_gamma: tl.tensor,
    channel: tl.tensor,
    is_live: tl.tensor,
) -> "Tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]":
    """gamma, m, gamma (1 + proxy_gamma) and 1 + proxy_gamma."""
    gamma, m, _, _ = channel_rows(weight, bias, None, None, channel, is_live)
    stretch = tl.full(channel.shape, 1.0, tl.float32)
    if proxy_beta is not None:
        m += gamma * tl.load(proxy_beta + channel, mask=is_live, other=0.0).to(tl.float32)
    if proxy_gamma is not None:
        stretch += tl.load(proxy_gamma + channel, mask=is_live, other=0.0).to(tl.float32)
    return gamma, m, gamma * stretch, stretch


@triton.jit
def relu_statistics(m: tl.tensor, s: tl.tensor) -> "Tuple":
    """Return mean and variance under the proxy for ReLU, in closed form.

    With a = m / s, P = Phi(a), Q = Phi(-a), p the density at a: mean m P + s p, variance
    s^2 [P + a^2 P Q + a p (Q - P) - p^2]. Beyond |a| = 30 both tails are 0 or 1 in float32; the bound keeps a^2 finite.
    """
    a = m / s
    a = tl.where(a > 30.0, 30.0, tl.where(a < -30.0, -30.0, a))
    p, above, below = normal_distribution(a)
    mean = m * above + s * p
    spread = above + a * a * above * below + a * p * (below - above) - p * p
    variance = s * s * tl.where(spread < 0.0, 0.0, spread)
    return mean, variance, above, p, 2.0 * mean * below, 2.0 * (s * above - mean * p)


@triton.jit
def quadrature(m: tl.tensor, s: tl.tensor, ACTIVATION: tl.constexpr) -> "Tuple":
    """Return the trapezoid rule's sums over all nodes at once.

    They are the mean, the variance E[(phi - mean)^2], and its slopes 2 E[(phi - mean) phi'] and
    2 E[(phi - mean) phi' z]. Nodes behind the 129th have weight zero.
    """
    node = tl.arange(0, 256)
    z = tl.where(node < 129, node * 0.125 - 8.0, 0.0)[None, :]
    weights = tl.where((node < 129)[None, :], tl.exp(-0.5 * z * z) / NODE_WEIGHT_SUM, 0.0)
    value, slope = value_and_slope(m[:, None] + s[:, None] * z, ACTIVATION)
    slope = slope * weights
    mean = tl.sum(value * weights, axis=1)
    deviation = value - mean[:, None]
    covariance = deviation * slope
    return (
        mean,
        tl.sum(deviation * deviation * weights, axis=1),
        tl.sum(slope, axis=1),
        tl.sum(slope * z, axis=1),
        2.0 * tl.sum(covariance, axis=1),
        2.0 * tl.sum(covariance * z, axis=1),
    )
