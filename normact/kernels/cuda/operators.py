"""The operators normact::* for CUDA tensors: unwrapped here, computed by the kernels beside this file.

The operators' schemas and gradients are those of the C++ library; so are shapes, types and meaning of every result.
"""

from __future__ import annotations

import functools
from typing import Optional, Tuple

import torch
from torch import Tensor

from normact.kernels.arguments import LayerArguments, ProxyArguments, Rows, called_flat
from normact.kernels.cuda.chunks import chunk_moments, chunk_sums, merge_moments, merge_sums
from normact.kernels.cuda.groups import group_backward, group_forward
from normact.kernels.cuda.maps import map_backward, map_forward
from normact.kernels.cuda.plan import (
    Problem,
    Tile,
    chunk_pixels,
    chunk_tile,
    divide_up,
    group_fits_one_program,
    group_tile,
    map_pixels,
    problem_of,
)
from normact.kernels.cuda.proxy import proxy_backward, proxy_forward
from normact.kernels.memory_format import memory_format_of

_MERGE_BLOCK = 128
_PROXY_BLOCK = 8  # channels a program: with 256 lanes of nodes, 16 elements a thread
_library: Optional[torch.library.Library] = None


def register() -> None:
    """Make the functions of this file the operators' implementation for CUDA tensors. Once per process."""
    global _library  # noqa: PLW0603  registrations live as long as their library object
    _library = torch.library.Library("normact", "IMPL")
    for function in (norm_act, norm_act_again, norm_act_backward, proxy_statistics, proxy_statistics_backward):
        _library.impl(function.__name__, called_flat(function), "CUDA")


def norm_act(x: Tensor, layer: LayerArguments, eps: float) -> Tuple[Tensor, Tensor]:
    """Return the output, and (mean, 1/std) of every (image, group) in float64."""
    memory_format = memory_format_of(x)
    problem = problem_of(x, memory_format, layer.num_groups, layer.strided)
    rows = _rows(problem, layer)
    x = x.contiguous(memory_format=memory_format)
    statistics = x.new_empty((problem.images, problem.groups, 2), dtype=torch.float64)
    out = torch.empty_like(x, memory_format=memory_format)
    if x.numel() == 0:
        return out, statistics
    with torch.cuda.device_of(x):
        if group_fits_one_program(problem, _processors(x.device)):
            tile = group_tile(problem)
            group_forward[(problem.images * problem.groups,)](
                x, out, statistics, *rows, *_group_arguments(problem), eps, layer.activation, tile.channels,
                tile.pixels, num_warps=tile.num_warps,
            )  # fmt: skip
        else:
            _chunk_statistics(problem, x, statistics, eps)
            _map_forward(problem, x, out, statistics, rows, layer.activation)
    return out, statistics


def norm_act_again(x: Tensor, statistics: Tensor, layer: LayerArguments) -> Tensor:
    """Return the output of norm_act, from the statistics that it returned."""
    memory_format = memory_format_of(x)
    problem = problem_of(x, memory_format, layer.num_groups, layer.strided)
    rows = _rows(problem, layer)
    x = x.contiguous(memory_format=memory_format)
    out = torch.empty_like(x, memory_format=memory_format)
    if x.numel():
        with torch.cuda.device_of(x):
            _map_forward(problem, x, out, statistics.contiguous(), rows, layer.activation)
    return out


def norm_act_backward(grad: Tensor, x: Tensor, statistics: Tensor, layer: LayerArguments) -> Tuple[Tensor, Tensor]:
    """Return the gradient of x, and those of weight, bias, proxy_mean and proxy_inverse_std as rows of float32."""
    memory_format = memory_format_of(x)
    problem = problem_of(x, memory_format, layer.num_groups, layer.strided)
    rows = _rows(problem, layer)
    x, grad = x.contiguous(memory_format=memory_format), grad.to(x.dtype).contiguous(memory_format=memory_format)
    statistics = statistics.contiguous()
    dx = torch.empty_like(x, memory_format=memory_format)
    if x.numel() == 0:
        return dx, x.new_zeros((4, problem.channels), dtype=torch.float32)
    # One image's share each, summed in a fixed order.
    partials = x.new_empty((4, problem.images, problem.channels), dtype=torch.float32)
    with torch.cuda.device_of(x):
        if group_fits_one_program(problem, _processors(x.device)):
            tile = group_tile(problem)
            group_backward[(problem.images * problem.groups,)](
                grad, x, dx, statistics, partials, *rows, partials[0].numel(), *_group_arguments(problem),
                layer.activation, tile.channels, tile.pixels, num_warps=tile.num_warps,
            )  # fmt: skip
        else:
            _chunked_backward(problem, (grad, x, dx), statistics, partials, rows, layer.activation)
    return dx, partials.sum(dim=1)


def proxy_statistics(activation: str, proxy: ProxyArguments, eps: float) -> Tuple[Tensor, Tensor, Tensor]:
    """Mean, 1/std, and their slopes in m and s (4, C)."""
    rows = tuple(None if row is None else row.contiguous() for row in proxy)
    given = next((row for row in rows if row is not None), None)
    if given is None:
        raise RuntimeError(
            "proxy statistics of no parameters: give at least one of weight, bias, proxy_beta and proxy_gamma"
        )
    channels = given.shape[0]
    mean, inverse_std = (given.new_empty((channels,), dtype=torch.float32) for _ in range(2))
    slopes = given.new_empty((4, channels), dtype=torch.float32)
    with torch.cuda.device_of(given):
        proxy_forward[(divide_up(channels, _PROXY_BLOCK),)](
            mean, inverse_std, slopes, *rows, channels, eps, activation, _PROXY_BLOCK
        )
    return mean, inverse_std, slopes


def proxy_statistics_backward(
    grad_mean: Optional[Tensor],
    grad_inverse_std: Optional[Tensor],
    slopes: Tensor,
    proxy: ProxyArguments,
) -> Tensor:
    """Gradients of weight, bias, proxy_beta and proxy_gamma as rows of float32."""
    rows = tuple(None if row is None else row.contiguous() for row in (grad_mean, grad_inverse_std, slopes, *proxy))
    gradients = torch.empty_like(slopes, memory_format=torch.contiguous_format)
    channels = slopes.shape[1]
    with torch.cuda.device_of(slopes):
        proxy_backward[(divide_up(channels, _MERGE_BLOCK),)](gradients, *rows, channels, _MERGE_BLOCK)
    return gradients


def _chunk_statistics(problem: Problem, x: Tensor, statistics: Tensor, eps: float) -> None:
    tile = chunk_tile(problem)
    size = chunk_pixels(problem, tile, _processors(x.device))
    chunks = divide_up(problem.pixels, size)
    moments = x.new_empty((2, problem.images, chunks, problem.channels), dtype=torch.float64)
    chunk_moments[_chunk_grid(problem, tile, chunks)](
        x, moments, moments[0].numel(), problem.channels, problem.pixels, chunks, size, problem.channel_stride,
        problem.pixel_stride, tile.channels, tile.pixels, num_warps=tile.num_warps,
    )  # fmt: skip
    merge_moments[(problem.images * problem.groups,)](
        moments, statistics, moments[0].numel(), problem.channels, problem.groups, problem.group_channels,
        problem.pixels, chunks, size, problem.group_step, problem.channel_step, eps, _MERGE_BLOCK,
    )  # fmt: skip


def _map_forward(problem: Problem, x: Tensor, out: Tensor, statistics: Tensor, rows: Rows, activation: str) -> None:
    tile = chunk_tile(problem)
    size = map_pixels(problem, tile, _processors(x.device))
    chunks = divide_up(problem.pixels, size)
    map_forward[_chunk_grid(problem, tile, chunks)](
        x, out, statistics, *rows, *_group_arguments(problem), chunks, size, activation, tile.channels, tile.pixels,
        num_warps=tile.num_warps,
    )  # fmt: skip


def _chunked_backward(
    problem: Problem,
    tensors: Tuple[Tensor, Tensor, Tensor],
    statistics: Tensor,
    partials: Tensor,
    rows: Rows,
    activation: str,
) -> None:
    grad, x, dx = tensors
    weight, bias, proxy_mean, proxy_inverse_std = rows
    tile = chunk_tile(problem)
    size = chunk_pixels(problem, tile, _processors(x.device))
    chunks = divide_up(problem.pixels, size)
    sums = x.new_empty((4, problem.images, chunks, problem.channels), dtype=torch.float32)
    gradients = x.new_empty((problem.images, problem.groups, 2), dtype=torch.float32)
    shape = (problem.channels, problem.groups, problem.group_channels, problem.pixels)
    steps = (problem.group_step, problem.channel_step)
    strides = (problem.channel_stride, problem.pixel_stride)
    chunk_sums[_chunk_grid(problem, tile, chunks)](
        grad, x, sums, statistics, weight, bias, sums[0].numel(), *shape, chunks, size, *steps, *strides, activation,
        tile.channels, tile.pixels, num_warps=tile.num_warps,
    )  # fmt: skip
    merge_sums[(problem.images * problem.groups,)](
        sums, statistics, partials, gradients, weight, proxy_mean, proxy_inverse_std, partials[0].numel(),
        sums[0].numel(), *shape, chunks, *steps, _MERGE_BLOCK,
    )  # fmt: skip
    size = map_pixels(problem, tile, _processors(x.device))
    chunks = divide_up(problem.pixels, size)
    map_backward[_chunk_grid(problem, tile, chunks)](
        grad, x, dx, statistics, gradients, weight, bias, proxy_inverse_std, *shape, *steps, *strides, chunks, size,
        activation, tile.channels, tile.pixels, num_warps=tile.num_warps,
    )  # fmt: skip


def _rows(problem: Problem, layer: LayerArguments) -> Rows:
    for row in layer.rows:
        if row is not None and row.shape != (problem.channels,):
            raise ValueError(f"a per-channel parameter has shape {tuple(row.shape)}; ({problem.channels},) is needed")
    return tuple(  # type: ignore[return-value]  # four of them
        None if row is None else row.contiguous() for row in layer.rows
    )


def _group_arguments(problem: Problem) -> Tuple[int, ...]:
    return (
        problem.channels, problem.groups, problem.group_channels, problem.pixels, problem.group_step,
        problem.channel_step, problem.channel_stride, problem.pixel_stride,
    )  # fmt: skip


def _chunk_grid(problem: Problem, tile: Tile, inner: int) -> Tuple[int]:
    return (problem.images * divide_up(problem.channels, tile.channels) * inner,)


@functools.lru_cache(maxsize=None)
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
