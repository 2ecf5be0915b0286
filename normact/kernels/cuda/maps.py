"""Element by element, with statistics that are known: the output from x, and the gradient of x.

Each program has a chunk of the pixels of a block of channels, whatever groups they belong to: several tiles, so that
reading the channels' parameters and statistics costs little beside them.
"""

# ruff: noqa: N803  compile-time constants are capitals in Triton

from __future__ import annotations

from typing import Tuple

import triton
import triton.language as tl

from normact.kernels.cuda.elements import channel_map, channel_rows, mapped, value_and_slope


@triton.jit
def map_forward(
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
    chunks: tl.tensor,
    chunk_pixels: tl.tensor,
    ACTIVATION: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
) -> None:
    """out from x and the groups' statistics, one chunk of pixels a program."""
    # Backwards: what was read last is still in the second-level cache.
    unit = tl.num_programs(0) - 1 - tl.program_id(0)
    image, channel, chunk = place(unit, chunks, channels, BLOCK_CHANNELS)
    is_live = channel < channels
    begin = chunk * chunk_pixels
    end = tl.minimum(begin + chunk_pixels, pixels)
    p = tl.arange(0, BLOCK_PIXELS)
    offsets = channel[:, None] * channel_stride + p[None, :] * pixel_stride
    group = statistics + 2 * (image * groups + group_of(channel, groups, group_channels, group_step, channel_step))
    mean, rstd = tl.load(group, mask=is_live, other=0.0), tl.load(group + 1, mask=is_live, other=0.0)
    gamma, beta, m, r = channel_rows(weight, bias, proxy_mean, proxy_inverse_std, channel, is_live)
    center, scale, offset = channel_map(gamma, beta, mean, rstd)
    for p0 in range(begin, end, BLOCK_PIXELS):
        in_tile = is_live[:, None] & (p0 + p < end)[None, :]
        at = image.to(tl.int64) * channels * pixels + p0 * pixel_stride + offsets
        v = tl.load(x + at, mask=in_tile, other=0.0).to(tl.float32)
        result = mapped(v, center[:, None], scale[:, None], offset[:, None], m[:, None], r[:, None], ACTIVATION)
        tl.store(out + at, result.to(out.dtype.element_ty), mask=in_tile)


@triton.jit
def map_backward(
    grad: tl.tensor,
    x: tl.tensor,
    dx: tl.tensor,
    statistics: tl.tensor,
    gradients: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    proxy_inverse_std: tl.tensor,
    channels: tl.tensor,
    groups: tl.tensor,
    group_channels: tl.tensor,
    pixels: tl.tensor,
    group_step: tl.tensor,
    channel_step: tl.tensor,
    channel_stride: tl.tensor,
    pixel_stride: tl.tensor,
    chunks: tl.tensor,
    chunk_pixels: tl.tensor,
    ACTIVATION: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
) -> None:
    """dx = scale r d + (tilt t + level), one chunk of pixels a program."""
    unit = tl.num_programs(0) - 1 - tl.program_id(0)  # backwards, as map_forward
    image, channel, chunk = place(unit, chunks, channels, BLOCK_CHANNELS)
    is_live = channel < channels
    begin = chunk * chunk_pixels
    end = tl.minimum(begin + chunk_pixels, pixels)
    p = tl.arange(0, BLOCK_PIXELS)
    offsets = channel[:, None] * channel_stride + p[None, :] * pixel_stride
    pair = 2 * (image * groups + group_of(channel, groups, group_channels, group_step, channel_step))
    mean = tl.load(statistics + pair, mask=is_live, other=0.0)
    rstd = tl.load(statistics + pair + 1, mask=is_live, other=0.0)
    tilt = tl.load(gradients + pair, mask=is_live, other=0.0)
    level = tl.load(gradients + pair + 1, mask=is_live, other=0.0)
    gamma, beta, _m, r = channel_rows(weight, bias, None, proxy_inverse_std, channel, is_live)
    center, scale, offset = channel_map(gamma, beta, mean, rstd)
    for p0 in range(begin, end, BLOCK_PIXELS):
        in_tile = is_live[:, None] & (p0 + p < end)[None, :]
        at = image.to(tl.int64) * channels * pixels + p0 * pixel_stride + offsets
        t = tl.load(x + at, mask=in_tile, other=0.0).to(tl.float32) - center[:, None]
        g = tl.load(grad + at, mask=in_tile, other=0.0).to(tl.float32)
        _, slope = value_and_slope(scale[:, None] * t + offset[:, None], ACTIVATION)
        result = (scale * r)[:, None] * (g * slope) + (tilt[:, None] * t + level[:, None])
        tl.store(dx + at, result.to(dx.dtype.element_ty), mask=in_tile)


@triton.jit
def place(unit: tl.tensor, chunks: tl.tensor, channels: tl.tensor, BLOCK_CHANNELS: tl.constexpr) -> "Tuple":
    """Image, channels and chunk of a program."""
    blocks = tl.cdiv(channels, BLOCK_CHANNELS)
    image, rest = unit // (blocks * chunks), unit % (blocks * chunks)
    channel = (rest // chunks) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    return image, channel, rest % chunks


@triton.jit
def group_of(
    channel: tl.tensor, groups: tl.tensor, group_channels: tl.tensor, group_step: tl.tensor, channel_step: tl.tensor
) -> tl.tensor:
    """c // (C / G) where a group's channels lie side by side (group_step is C / G), c % G where they are strided."""
    return tl.where(channel_step == 1, channel // group_channels, channel % groups)
