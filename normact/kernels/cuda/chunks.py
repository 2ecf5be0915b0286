"""The same step in three kernels, for groups that do not fit one program: each image is cut into chunks of pixels.

    forward     moments of every channel and chunk  ->  merged per group              ->  map (maps.py)
    backward    sums of every channel and chunk     ->  merged per channel and group  ->  gradient of x (maps.py)

Used where there are too few groups to fill the device, and where the channels of one group do not lie side by side in
memory: a program here works on all channels of a block, whatever groups they belong to, and reads them in one piece.
No atomics: every chunk has a place of its own in the workspace, and the merge reads them in order.
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
    sum_of_g_value,
    value_and_slope,
)
from normact.kernels.cuda.maps import group_of, place


@triton.jit
def chunk_moments(
    x: tl.tensor,
    moments: tl.tensor,
    plane: tl.tensor,
    channels: tl.tensor,
    pixels: tl.tensor,
    chunks: tl.tensor,
    chunk_pixels: tl.tensor,
    channel_stride: tl.tensor,
    pixel_stride: tl.tensor,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
) -> None:
    """Store mean and sum of squared deviations of each channel of a chunk in moments (2, images, chunks, channels).

    plane: images * chunks * channels.
    """
    image, channel, chunk = place(tl.program_id(0), chunks, channels, BLOCK_CHANNELS)
    is_live = channel < channels
    begin = chunk * chunk_pixels
    end = tl.minimum(begin + chunk_pixels, pixels)
    p = tl.arange(0, BLOCK_PIXELS)
    start = image.to(tl.int64) * channels * pixels
    offsets = channel[:, None] * channel_stride + p[None, :] * pixel_stride

    # Shifted sums, the pivot being each channel's mean over the first tile: see group_forward.
    in_tile = is_live[:, None] & (begin + p < end)[None, :]
    first = tl.load(x + start + begin * pixel_stride + offsets, mask=in_tile, other=0.0).to(tl.float32)
    pivot = tl.sum(first, axis=1) / tl.minimum(end - begin, BLOCK_PIXELS)
    shifted = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], tl.float32)
    squared = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], tl.float32)
    for p0 in range(begin, end, BLOCK_PIXELS):
        in_tile = is_live[:, None] & (p0 + p < end)[None, :]
        v = tl.load(x + start + p0 * pixel_stride + offsets, mask=in_tile, other=0.0).to(tl.float32)
        t = tl.where(in_tile, v - pivot[:, None], 0.0)
        shifted += t
        squared += t * t
    total = tl.sum(shifted, axis=1).to(tl.float64)
    shift = total / (end - begin)
    m2 = tl.sum(squared, axis=1).to(tl.float64) - shift * total
    at = moments + (image.to(tl.int64) * chunks + chunk) * channels + channel
    tl.store(at, pivot.to(tl.float64) + shift, mask=is_live)
    tl.store(at + plane, tl.where(m2 < 0.0, 0.0, m2), mask=is_live)


@triton.jit
def merge_moments(
    moments: tl.tensor,
    statistics: tl.tensor,
    plane: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    group_channels: tl.tensor,
    pixels: tl.tensor,
    chunks: tl.tensor,
    chunk_pixels: tl.tensor,
    group_step: tl.tensor,
    channel_step: tl.tensor,
    eps: tl.tensor,
    BLOCK_MERGE: tl.constexpr,
) -> None:
    """Combine the moments of channels and chunks into a group's (mean, 1/std), in two passes: mean, then deviations."""
    unit = tl.program_id(0)
    image, group = unit // groups, unit % groups
    base = moments + image.to(tl.int64) * chunks * channels
    count = tl.full([], group_channels * pixels, tl.float64)
    k = tl.arange(0, BLOCK_MERGE)
    lanes = tl.zeros([BLOCK_MERGE], tl.float64)
    for k0 in range(0, group_channels * chunks, BLOCK_MERGE):
        is_live = k0 + k < group_channels * chunks
        chunk = (k0 + k) % chunks
        channel = group * group_step + ((k0 + k) // chunks) * channel_step
        weight = tl.minimum(chunk_pixels, pixels - chunk * chunk_pixels).to(tl.float64)
        lanes += weight * tl.load(base + chunk * channels + channel, mask=is_live, other=0.0)
    mean = tl.sum(lanes) / count
    lanes = tl.zeros([BLOCK_MERGE], tl.float64)
    for k0 in range(0, group_channels * chunks, BLOCK_MERGE):
        is_live = k0 + k < group_channels * chunks
        chunk = (k0 + k) % chunks
        channel = group * group_step + ((k0 + k) // chunks) * channel_step
        weight = tl.minimum(chunk_pixels, pixels - chunk * chunk_pixels).to(tl.float64)
        at = base + chunk * channels + channel
        deviation = tl.load(at, mask=is_live, other=0.0) - mean
        m2 = tl.load(at + plane, mask=is_live, other=0.0)
        lanes += tl.where(is_live, m2 + weight * deviation * deviation, 0.0)
    tl.store(statistics + 2 * unit, mean)
    tl.store(statistics + 2 * unit + 1, 1.0 / tl.sqrt(tl.sum(lanes) / count + eps))


@triton.jit
def chunk_sums(
    grad: tl.tensor,
    x: tl.tensor,
    sums: tl.tensor,
    statistics: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    plane: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    group_channels: tl.tensor,
    pixels: tl.tensor,
    chunks: tl.tensor,
    chunk_pixels: tl.tensor,
    group_step: tl.tensor,
    channel_step: tl.tensor,
    channel_stride: tl.tensor,
    pixel_stride: tl.tensor,
    ACTIVATION: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
) -> None:
    """Store each channel's sums over a chunk of g, g phi(z), d = g phi'(z) and d t in (4, images, chunks, channels).

    plane: images * chunks * channels.
    """
    image, channel, chunk = place(tl.program_id(0), chunks, channels, BLOCK_CHANNELS)
    is_live = channel < channels
    begin = chunk * chunk_pixels
    end = tl.minimum(begin + chunk_pixels, pixels)
    p = tl.arange(0, BLOCK_PIXELS)
    group = statistics + 2 * (image * groups + group_of(channel, groups, group_channels, group_step, channel_step))
    mean, rstd = tl.load(group, mask=is_live, other=0.0), tl.load(group + 1, mask=is_live, other=0.0)
    gamma, beta, _, _ = channel_rows(weight, bias, None, None, channel, is_live)
    center, scale, offset = channel_map(gamma, beta, mean, rstd)
    start = image.to(tl.int64) * channels * pixels
    offsets = channel[:, None] * channel_stride + p[None, :] * pixel_stride
    g_lanes = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], tl.float32)
    g_value_lanes = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], tl.float32)
    d_lanes = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], tl.float32)
    d_t_lanes = tl.zeros([BLOCK_CHANNELS, BLOCK_PIXELS], tl.float32)
    for p0 in range(begin, end, BLOCK_PIXELS):
        in_tile = is_live[:, None] & (p0 + p < end)[None, :]
        at = start + p0 * pixel_stride + offsets
        t = tl.load(x + at, mask=in_tile, other=0.0).to(tl.float32) - center[:, None]
        # Outside the tile the gradient is zero, and so is all that it adds.
        g = tl.load(grad + at, mask=in_tile, other=0.0).to(tl.float32)
        value, slope = value_and_slope(scale[:, None] * t + offset[:, None], ACTIVATION)
        d = g * slope
        g_lanes += g
        g_value_lanes += g * value
        d_lanes += d
        d_t_lanes += d * t
    sum_g, sum_d, sum_d_t = tl.sum(g_lanes, axis=1), tl.sum(d_lanes, axis=1), tl.sum(d_t_lanes, axis=1)
    row = sums + (image.to(tl.int64) * chunks + chunk) * channels + channel
    tl.store(row, sum_g, mask=is_live)
    tl.store(row + plane, sum_of_g_value(g_value_lanes, sum_d, sum_d_t, scale, offset, ACTIVATION), mask=is_live)
    tl.store(row + 2 * plane, sum_d, mask=is_live)
    tl.store(row + 3 * plane, sum_d_t, mask=is_live)


@triton.jit
def merge_sums(
    sums: tl.tensor,
    statistics: tl.tensor,
    partials: tl.tensor,
    gradients: tl.tensor,
    weight: tl.tensor,
    proxy_mean: tl.tensor,
    proxy_inverse_std: tl.tensor,
    plane: tl.tensor,
    chunk_plane: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    group_channels: tl.tensor,
    pixels: tl.tensor,
    chunks: tl.tensor,
    group_step: tl.tensor,
    channel_step: tl.tensor,
    BLOCK_MERGE: tl.constexpr,
) -> None:
    """Compute a group's (tilt, level), and this image's gradients of the per-channel parameters (4, images, channels).

    plane: images * channels. chunk_plane: images * chunks * channels.
    """
    unit = tl.program_id(0)
    image, group = unit // groups, unit % groups
    mean, rstd = tl.load(statistics + 2 * unit), tl.load(statistics + 2 * unit + 1)
    below_center = (mean - mean.to(tl.float32).to(tl.float64)).to(tl.float32)
    j = tl.arange(0, BLOCK_MERGE)
    sum_h = tl.zeros([BLOCK_MERGE], tl.float64)
    sum_h_y = tl.zeros([BLOCK_MERGE], tl.float64)
    for j0 in range(0, group_channels, BLOCK_MERGE):
        is_live = j0 + j < group_channels
        channel = group * group_step + (j0 + j) * channel_step
        gamma, _, m, r = channel_rows(weight, None, proxy_mean, proxy_inverse_std, channel, is_live)
        sum_g = tl.zeros([BLOCK_MERGE], tl.float32)
        sum_g_value = tl.zeros([BLOCK_MERGE], tl.float32)
        sum_d = tl.zeros([BLOCK_MERGE], tl.float32)
        sum_d_t = tl.zeros([BLOCK_MERGE], tl.float32)
        for chunk in range(0, chunks):
            row = sums + (image.to(tl.int64) * chunks + chunk) * channels + channel
            sum_g += tl.load(row, mask=is_live, other=0.0)
            sum_g_value += tl.load(row + chunk_plane, mask=is_live, other=0.0)
            sum_d += tl.load(row + 2 * chunk_plane, mask=is_live, other=0.0)
            sum_d_t += tl.load(row + 3 * chunk_plane, mask=is_live, other=0.0)
        d_gamma, d_beta, d_m, d_r = channel_gradients(
            sum_g, sum_g_value, sum_d, sum_d_t, below_center, rstd.to(tl.float32), m, r
        )
        at = partials + image.to(tl.int64) * channels + channel
        tl.store(at, d_gamma, mask=is_live)
        tl.store(at + plane, d_beta, mask=is_live)
        tl.store(at + 2 * plane, d_m, mask=is_live)
        tl.store(at + 3 * plane, d_r, mask=is_live)
        sum_h += tl.where(is_live, gamma * d_beta, 0.0).to(tl.float64)
        sum_h_y += tl.where(is_live, gamma * d_gamma, 0.0).to(tl.float64)
    count = tl.full([], group_channels * pixels, tl.float64)
    tilt, level = group_gradient(tl.sum(sum_h), tl.sum(sum_h_y), count, mean, rstd)
    tl.store(gradients + 2 * unit, tilt)
    tl.store(gradients + 2 * unit + 1, level)
