"""What every Triton kernel computes for one element and for one channel, in float32.

y = (x - mean) * rstd     z = gamma y + beta     out = (phi(z) - m) r        m, r: the channel's proxy mean and 1/std

Everything works on t = x - center, where center is the group's mean rounded to float32, so that the difference is
exact where it matters; what the rounding took from the mean goes into the channel's offset. (scale * x + offset would
lose a mean of 1e4 deviations.)
"""

from __future__ import annotations

from typing import Tuple

import triton
import triton.language as tl


@triton.jit
def value_and_slope(z: tl.tensor, ACTIVATION: tl.constexpr) -> "Tuple[tl.tensor, tl.tensor]":  # noqa: N803
    """phi(z) and phi'(z). A NaN stays one: comparisons are written so that it takes the branch of z."""
    if ACTIVATION == "identity":
        return z, tl.zeros_like(z) + 1.0
    elif ACTIVATION == "relu":  # noqa: RET505  a compile-time branch needs its else
        is_off = z <= 0.0
        return tl.where(is_off, 0.0, z), tl.where(is_off, 0.0, 1.0)
    elif ACTIVATION == "silu":
        gate = 1.0 / (1.0 + tl.exp(-z))
        value = z * gate
        return value, gate + value * (1.0 - gate)
    else:
        density, lower, _ = normal_distribution(z)
        return z * lower, lower + z * density


@triton.jit
def normal_distribution(v: tl.tensor) -> "Tuple[tl.tensor, tl.tensor, tl.tensor]":
    """Return the normal density p(v), Phi(v) and Phi(-v), each accurate in its own tail, as in csrc/activation.h.

    Phi(-|v|) = exp(-v^2 / 2) t P(t) with t = 1 / (1 + 0.36 |v|); the error of Phi is 9e-8.
    """
    distance = tl.where(tl.abs(v) > 40.0, 40.0, tl.abs(v))  # beyond, everything is 0 or 1 in float32
    bell = tl.exp(-0.5 * distance * distance)
    t = 1.0 / (1.0 + 0.36 * distance)
    p = t * -0.0296535864 + 0.136440307
    p = p * t - 0.216863438
    p = p * t + 0.0993090272
    p = p * t + 0.00534148933
    p = p * t + 0.0935728401
    p = p * t + 0.124633595
    p = p * t + 0.143597394
    p = p * t + 0.143622339
    tail = bell * (p * t)
    rest = 1.0 - tail
    return bell * 0.398942280, tl.where(v > 0.0, rest, tail), tl.where(v > 0.0, tail, rest)


@triton.jit
def channel_rows(
    weight: tl.tensor,
    bias: tl.tensor,
    proxy_mean: tl.tensor,
    proxy_inverse_std: tl.tensor,
    channel: tl.tensor,
    is_live: tl.tensor,
) -> "Tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]":
    """gamma, beta, m and r of some channels as float32; an absent parameter is its neutral value."""
    gamma = tl.full(channel.shape, 1.0, tl.float32)
    beta = tl.full(channel.shape, 0.0, tl.float32)
    mean = tl.full(channel.shape, 0.0, tl.float32)
    inverse_std = tl.full(channel.shape, 1.0, tl.float32)
    if weight is not None:
        gamma = tl.load(weight + channel, mask=is_live, other=0.0).to(tl.float32)
    if bias is not None:
        beta = tl.load(bias + channel, mask=is_live, other=0.0).to(tl.float32)
    if proxy_mean is not None:
        mean = tl.load(proxy_mean + channel, mask=is_live, other=0.0).to(tl.float32)
    if proxy_inverse_std is not None:
        inverse_std = tl.load(proxy_inverse_std + channel, mask=is_live, other=1.0).to(tl.float32)
    return gamma, beta, mean, inverse_std


@triton.jit
def channel_map(
    gamma: tl.tensor, beta: tl.tensor, mean: tl.tensor, rstd: tl.tensor
) -> "Tuple[tl.tensor, tl.tensor, tl.tensor]":
    """center, scale and offset of z = scale * (x - center) + offset, from a group's float64 mean and 1/std."""
    center = mean.to(tl.float32)
    below_center = (mean - center.to(tl.float64)).to(tl.float32)
    scale = gamma * rstd.to(tl.float32)
    return center, scale, beta - scale * below_center


@triton.jit
def mapped(
    x: tl.tensor,
    center: tl.tensor,
    scale: tl.tensor,
    offset: tl.tensor,
    proxy_mean: tl.tensor,
    proxy_inverse_std: tl.tensor,
    ACTIVATION: tl.constexpr,  # noqa: N803
) -> tl.tensor:
    """out, as one multiply-add after the activation."""
    value, _ = value_and_slope(scale * (x - center) + offset, ACTIVATION)
    return value * proxy_inverse_std - proxy_mean * proxy_inverse_std


@triton.jit
def sum_of_g_value(
    lanes: tl.tensor,
    sum_d: tl.tensor,
    sum_d_t: tl.tensor,
    scale: tl.tensor,
    offset: tl.tensor,
    ACTIVATION: tl.constexpr,  # noqa: N803
) -> tl.tensor:
    """Return the sum of g phi(z) over pixels; with phi(z) = phi'(z) z it follows from two others, without lanes."""
    if ACTIVATION == "relu" or ACTIVATION == "identity":
        return scale * sum_d_t + offset * sum_d
    else:  # noqa: RET505  a compile-time branch needs its else
        return tl.sum(lanes, axis=1)


@triton.jit
def channel_gradients(
    sum_g: tl.tensor,
    sum_g_value: tl.tensor,
    sum_d: tl.tensor,
    sum_d_t: tl.tensor,
    below_center: tl.tensor,
    rstd: tl.tensor,
    proxy_mean: tl.tensor,
    proxy_inverse_std: tl.tensor,
) -> "Tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]":
    """Gradients of gamma, beta, m and r from the sums over pixels of g, g phi(z), d = g phi'(z) and d t."""
    d_gamma = proxy_inverse_std * ((sum_d_t - below_center * sum_d) * rstd)
    d_beta = proxy_inverse_std * sum_d
    d_proxy_mean = -proxy_inverse_std * sum_g
    return d_gamma, d_beta, d_proxy_mean, sum_g_value - proxy_mean * sum_g


@triton.jit
def group_gradient(
    sum_h: tl.tensor, sum_h_y: tl.tensor, count: tl.tensor, mean: tl.tensor, rstd: tl.tensor
) -> "Tuple[tl.tensor, tl.tensor]":
    """tilt and level of dx = scale r d + (tilt t + level), that is rstd (h - mean(h) - y mean(h y)), h = gamma r d.

    sum_h and sum_h_y: over the group, of h and h y; everything float64.
    """
    tilt = -rstd * rstd * (sum_h_y / count)
    below_center = mean - mean.to(tl.float32).to(tl.float64)
    return tilt.to(tl.float32), (-rstd * (sum_h / count) - tilt * below_center).to(tl.float32)
