"""How the Triton kernels divide a tensor: its layout as strides, and the sizes of tiles, programs and chunks.

Chosen by rules from shape, type and number of multiprocessors alone: nothing is timed, so that a shape always runs the
same kernels and gives the same bits. The rules follow from registers, cache lines and occupancy as compiled for compute
capability 9.0; no GPU has timed them yet.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Elements of a tile for each warp of a program: 8 a thread, one 16-byte load of bfloat16, which leaves registers for
# the four sums of backward.
WARP_ELEMENTS = 256
# Memory moves in sectors of this many bytes; a group whose pieces are smaller is read together with its neighbours.
SECTOR_BYTES = 32
# A larger group would not stay in the second-level cache until its second reading.
MOST_GROUP_BYTES = 512 * 1024
# Programs of 4 warps for each multiprocessor that keep its memory pipes busy; a large group's program has more warps.
PROGRAMS_PER_PROCESSOR = 8
GROUPS_PER_PROCESSOR = 2
# A group that one program has done before a second kernel could start.
FEW_GROUP_VALUES = 32 * 1024
# Tiles that one program sums up around one pivot: see group_forward for why this bounds the error.
MOST_CHUNK_TILES = 64
MOST_MAP_TILES = 8


class Problem(NamedTuple):
    """A tensor and its groups as the kernels see them.

    Channel c and pixel p of an image lie at c * channel_stride + p * pixel_stride; channel j of group g is
    g * group_step + j * channel_step.
    """

    images: int
    channels: int
    pixels: int
    groups: int
    channel_stride: int
    pixel_stride: int
    group_step: int
    channel_step: int
    element_bytes: int

    @property
    def group_channels(self) -> int:
        return self.channels // self.groups

    @property
    def piece_bytes(self) -> int:
        """Length of the pieces of a group that lie side by side in memory."""
        side_by_side = self.group_channels if self.channel_step == 1 else 1
        if self.pixel_stride == 1:
            return self.element_bytes * self.pixels * side_by_side
        return self.element_bytes * side_by_side


class Tile(NamedTuple):
    """Sizes of a tile, powers of two, and the warps that work on it."""

    channels: int
    pixels: int
    num_warps: int


def problem_of(x: Tensor, memory_format: torch.memory_format, num_groups: int, strided: bool) -> Problem:
    """Return the problem of a tensor that is contiguous in this memory format.

    Raises:
        ValueError: num_groups does not divide the channels.
    """
    images, channels = x.shape[:2]
    if num_groups < 1 or channels % num_groups:
        raise ValueError(f"num_groups {num_groups} does not divide the {channels} channels")
    pixels = x.shape[2:].numel()
    is_channels_last = memory_format != torch.contiguous_format
    return Problem(
        images=images,
        channels=channels,
        pixels=pixels,
        groups=num_groups,
        channel_stride=1 if is_channels_last else pixels,
        pixel_stride=channels if is_channels_last else 1,
        group_step=1 if strided else channels // num_groups,
        channel_step=num_groups if strided else 1,
        element_bytes=x.element_size(),
    )


def group_fits_one_program(problem: Problem, processors: int) -> bool:
    """Whether one program for each (image, group) is the better form.

    It is with whole sectors, a group that stays in the cache, and enough groups to fill the device, or groups so small
    that more programs would not help.
    """
    values = problem.group_channels * problem.pixels
    if problem.piece_bytes < SECTOR_BYTES or values * problem.element_bytes > MOST_GROUP_BYTES:
        return False
    enough = problem.images * problem.groups >= GROUPS_PER_PROCESSOR * processors
    return enough or values <= FEW_GROUP_VALUES


def group_tile(problem: Problem) -> Tile:
    """For one program per group: the larger the group the more warps, so that few are in flight and stay cached."""
    values = problem.group_channels * problem.pixels
    num_warps = 4 if values <= 8 * 1024 else 8 if values <= 32 * 1024 else 16
    return _tile(problem, problem.group_channels, num_warps)


def chunk_tile(problem: Problem) -> Tile:
    """For programs that work on any channels of an image."""
    return _tile(problem, problem.channels, 4)


def chunk_pixels(problem: Problem, tile: Tile, processors: int) -> int:
    """Pixels of a chunk, whole tiles: enough chunks to fill the device, none too long to sum up around one pivot."""
    return _chunk_tiles(problem, tile, processors, MOST_CHUNK_TILES) * tile.pixels


def map_pixels(problem: Problem, tile: Tile, processors: int) -> int:
    """Pixels that one program maps, whole tiles: some, so that reading the channels' parameters costs little."""
    return _chunk_tiles(problem, tile, processors, MOST_MAP_TILES) * tile.pixels


def _chunk_tiles(problem: Problem, tile: Tile, processors: int, most: int) -> int:
    tiles = divide_up(problem.pixels, tile.pixels)
    blocks = problem.images * divide_up(problem.channels, tile.channels)
    chunks = max(divide_up(PROGRAMS_PER_PROCESSOR * processors, blocks), divide_up(tiles, most))
    return divide_up(tiles, min(chunks, tiles))


def _tile(problem: Problem, channels: int, num_warps: int) -> Tile:
    """Return a tile that is long where memory is: over pixels (few idle lanes at the row's end) or channels."""
    most = num_warps * WARP_ELEMENTS
    if problem.pixel_stride == 1:
        pixels = _power_of_two(problem.pixels)
        if pixels > 128:
            pixels = min((1024, 512, 256, 128), key=lambda size: (divide_up(problem.pixels, size) * size, -size))
        return Tile(min(_power_of_two(channels), max(1, most // pixels)), pixels, num_warps)
    block = min(_power_of_two(channels), max(64, most // _power_of_two(problem.pixels)))
    return Tile(block, min(_power_of_two(problem.pixels), max(1, most // block)), num_warps)


def divide_up(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def _power_of_two(n: int) -> int:
    """Return the smallest one that is not below n."""
    return 1 << (n - 1).bit_length()
