"""One program per (image, group): statistics and map in one kernel, and the whole backward in one.

The program reads its group twice in forward and in backward; the second reading comes from the second-level cache, so
that memory sees each tensor once. Programs are independent: no atomics, and the same bits every time.

Tiles are [channels, pixels] of a group. Channel j of the group and pixel p lie at group + j * channel_stride +
p * pixel_stride, whatever the layout and the grouping; a stride of 1 is known to the compiler.
"""

# ruff: noqa: N803  compile-time constants are capitals in Triton

from __future__ import annotations

import triton
import triton.language as tl

from normact.kernels.cuda.elements import (
    channel_gradients,
    channel_map,
    channel_rows,
    group_gradient,
    mapped,
    sum_of_g_value,
    value_and_slope,
)


@triton.jit
def group_forward(
    x: tl.tensor,
    out: tl.tensor,
    statistics: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    proxy_mean: tl.tensor,
    proxy_inverse_std: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    group_channels: tl.tensor,
    pixels: tl.tensor,
    group_step: tl.tensor,
    channel_step: tl.tensor,
    channel_stride: tl.tensor,
    pixel_stride: tl.tensor,
    eps: tl.tensor,
    ACTIVATION: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
) -> None:
    """Write out and the group's (mean, 1/std)."""
    unit = tl.program_id(0)
    image, group = unit // groups, unit % groups
    start = image.to(tl.int64) * channels * pixels + group * group_step * channel_stride
    j, p = tl.arange(0, BLOCK_CHANNELS), tl.arange(0, BLOCK_PIXELS)
    offsets = j[:, None] * (channel_step * channel_stride) + p[None, :] * pixel_stride

    # Shifted sums. Any pivot is right; this one is the mean of a share f of the group's values, so that the variance is
    # at least f (1 - f) times the squared distance between pivot and mean: cancellation costs at most a factor 1 / f.
    in_tile = (j < group_channels)[:, None] & (p < pixels)[None, :]
    first = tl.load(x + start + offsets, mask=in_tile, other=0.0).to(tl.float32)
    pivot = tl.sum(first) / (tl.minimum(group_channels, BLOCK_CHANNELS) * tl.minimum(pixels, BLOCK_PIXELS))
    shifted = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], tl.float32)
    squared = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], tl.float32)
    for j0 in range(0, group_channels, BLOCK_CHANNELS):
        for p0 in range(0, pixels, BLOCK_PIXELS):
            in_tile = (j0 + j < group_channels)[:, None] & (p0 + p < pixels)[None, :]
            tile = x + start + j0 * (channel_step * channel_stride) + p0 * pixel_stride + offsets
            v = tl.load(tile, mask=in_tile, other=0.0, eviction_policy="evict_last").to(tl.float32)
            t = tl.where(in_tile, v - pivot, 0.0)
            shifted += t
            squared += t * t
    count = tl.full([], group_channels * pixels, tl.float64)
    shift = tl.sum(shifted).to(tl.float64) / count
    variance = tl.sum(squared).to(tl.float64) / count - shift * shift
    mean = pivot.to(tl.float64) + shift
    rstd = 1.0 / tl.sqrt(tl.where(variance < 0.0, 0.0, variance) + eps)  # a NaN stays one
    tl.store(statistics + 2 * unit, mean)
    tl.store(statistics + 2 * unit + 1, rstd)

    for j0 in range(0, group_channels, BLOCK_CHANNELS):
        is_live = j0 + j < group_channels
        channel = group * group_step + (j0 + j) * channel_step
        gamma, beta, m, r = channel_rows(weight, bias, proxy_mean, proxy_inverse_std, channel, is_live)
        center, scale, offset = channel_map(gamma, beta, mean, rstd)
        for p0 in range(0, pixels, BLOCK_PIXELS):
            in_tile = is_live[:, None] & (p0 + p < pixels)[None, :]
            at = start + j0 * (channel_step * channel_stride) + p0 * pixel_stride + offsets
            v = tl.load(x + at, mask=in_tile, other=0.0, eviction_policy="evict_first").to(tl.float32)
            result = mapped(v, center, scale[:, None], offset[:, None], m[:, None], r[:, None], ACTIVATION)
            tl.store(out + at, result.to(out.dtype.element_ty), mask=in_tile)


@triton.jit
def group_backward(
    grad: tl.tensor,
    x: tl.tensor,
    dx: tl.tensor,
    statistics: tl.tensor,
    partials: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    proxy_mean: tl.tensor,
    proxy_inverse_std: tl.tensor,
    plane: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    group_channels: tl.tensor,
    pixels: tl.tensor,
    group_step: tl.tensor,
    channel_step: tl.tensor,
    channel_stride: tl.tensor,
    pixel_stride: tl.tensor,
    ACTIVATION: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
) -> None:
    """Write dx and, into partials (4, images, channels), this image's gradients of the per-channel parameters.

    plane: images * channels.
    """
    unit = tl.program_id(0)
    image, group = unit // groups, unit % groups
    start = image.to(tl.int64) * channels * pixels + group * group_step * channel_stride
    j, p = tl.arange(0, BLOCK_CHANNELS), tl.arange(0, BLOCK_PIXELS)
    offsets = j[:, None] * (channel_step * channel_stride) + p[None, :] * pixel_stride
    mean, rstd = tl.load(statistics + 2 * unit), tl.load(statistics + 2 * unit + 1)
    below_center = (mean - mean.to(tl.float32).to(tl.float64)).to(tl.float32)

    sum_h = tl.zeros([BLOCK_CHANNELS], tl.float64)
    sum_h_y = tl.zeros([BLOCK_CHANNELS], tl.float64)
    for j0 in range(0, group_channels, BLOCK_CHANNELS):
        is_live = j0 + j < group_channels
        channel = group * group_step + (j0 + j) * channel_step
        gamma, beta, m, r = channel_rows(weight, bias, proxy_mean, proxy_inverse_std, channel, is_live)
        center, scale, offset = channel_map(gamma, beta, mean, rstd)
        g_lanes = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], tl.float32)
        g_value_lanes = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], tl.float32)
        d_lanes = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], tl.float32)
        d_t_lanes = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], tl.float32)
        for p0 in range(0, pixels, BLOCK_PIXELS):
            in_tile = is_live[:, None] & (p0 + p < pixels)[None, :]
            at = start + j0 * (channel_step * channel_stride) + p0 * pixel_stride + offsets
            v = tl.load(x + at, mask=in_tile, other=0.0, eviction_policy="evict_last").to(tl.float32)
            # Outside the tile the gradient is zero, and so is all that it adds.
            g = tl.load(grad + at, mask=in_tile, other=0.0, eviction_policy="evict_last").to(tl.float32)
            t = v - center
            value, slope = value_and_slope(scale[:, None] * t + offset[:, None], ACTIVATION)
            d = g * slope
            g_lanes += g
            g_value_lanes += g * value
            d_lanes += d
            d_t_lanes += d * t
        sum_g, sum_d, sum_d_t = tl.sum(g_lanes, axis=1), tl.sum(d_lanes, axis=1), tl.sum(d_t_lanes, axis=1)
        sum_g_value = sum_of_g_value(g_value_lanes, sum_d, sum_d_t, scale, offset, ACTIVATION)
        d_gamma, d_beta, d_m, d_r = channel_gradients(
            sum_g, sum_g_value, sum_d, sum_d_t, below_center, rstd.to(tl.float32), m, r
        )
        row = partials + image.to(tl.int64) * channels + channel
        tl.store(row, d_gamma, mask=is_live)
        tl.store(row + plane, d_beta, mask=is_live)
        tl.store(row + 2 * plane, d_m, mask=is_live)
        tl.store(row + 3 * plane, d_r, mask=is_live)
        sum_h += tl.where(is_live, gamma * d_beta, 0.0).to(tl.float64)
        sum_h_y += tl.where(is_live, gamma * d_gamma, 0.0).to(tl.float64)

    count = tl.full([], group_channels * pixels, tl.float64)
    tilt, level = group_gradient(tl.sum(sum_h), tl.sum(sum_h_y), count, mean, rstd)
    for j0 in range(0, group_channels, BLOCK_CHANNELS):
        is_live = j0 + j < group_channels
        channel = group * group_step + (j0 + j) * channel_step
        gamma, beta, m, r = channel_rows(weight, bias, proxy_mean, proxy_inverse_std, channel, is_live)
        center, scale, offset = channel_map(gamma, beta, mean, rstd)
        for p0 in range(0, pixels, BLOCK_PIXELS):
            in_tile = is_live[:, None] & (p0 + p < pixels)[None, :]
            at = start + j0 * (channel_step * channel_stride) + p0 * pixel_stride + offsets
            t = tl.load(x + at, mask=in_tile, other=0.0, eviction_policy="evict_first").to(tl.float32) - center
            g = tl.load(grad + at, mask=in_tile, other=0.0, eviction_policy="evict_first").to(tl.float32)
            _, slope = value_and_slope(scale[:, None] * t + offset[:, None], ACTIVATION)
            result = (scale * r)[:, None] * (g * slope) + (tilt * t + level)
            tl.store(dx + at, result.to(dx.dtype.element_ty), mask=in_tile)
