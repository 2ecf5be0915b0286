"""Whether outputs of the CPU kernels should be written past the caches on this machine, and from what size on.

    python -m benchmarks.streaming

Time of a GN+PN layer's forward and backward, with another layer's between them as in a network, ordinary and streaming
stores in turn. The last line is the setting of PROXYNORM_STREAMING_STORES that suits this machine: the least size from
which on streaming takes at most WORTHWHILE of the time in both memory formats. What is set without it:
normact/kernels/cpu/streaming.py.
"""

from __future__ import annotations

import argparse
from typing import Callable, Dict, Optional, Sequence

import torch
from torch import Tensor

from backends.host_memory import keep_freed_memory
from benchmarks.protocol import measure
from normact import NormActFactory
from normact.kernels import why_not_fused
from normact.kernels.cpu.build import build_library
from normact.kernels.cpu.streaming import MIB, NEVER, stream_from

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
SIDE = 32
CHANNELS = 128
IMAGE_BYTES = 4 * CHANNELS * SIDE * SIDE
SIZES = tuple(size * MIB for size in (1, 2, 4, 8, 16, 24, 32, 48))
WORTHWHILE = 0.97
NUM_GROUPS = 8


def two_layers(x: Tensor, gradient: Tensor) -> Callable[[], None]:
    """Return a function that runs forward and backward of two layers, one after the other."""
    factory = NormActFactory(norm="group", num_groups=NUM_GROUPS, kernel="fused")
    layers = torch.nn.Sequential(factory(CHANNELS, "relu"), factory(CHANNELS, "relu"))
    leaf = x.requires_grad_()

    def run() -> None:
        layers(leaf).backward(gradient)
        layers.zero_grad()
        leaf.grad = None

    return run


def time_size(size: int, memory_format: torch.memory_format, repetitions: int) -> float:
    """Return time with streaming stores over time with ordinary ones, for outputs of `size` bytes."""
    shape = (size // IMAGE_BYTES, CHANNELS, SIDE, SIDE)
    x, gradient = (torch.randn(shape).contiguous(memory_format=memory_format) for _ in range(2))
    run, library = two_layers(x, gradient), build_library()

    def streamed_from(least: int) -> Callable[[], None]:
        def timed() -> None:
            stream_from(library, least)
            run()

        return timed

    variants = {"ordinary": streamed_from(NEVER), "streaming": streamed_from(0)}
    return measure(variants, "ordinary", repetitions=repetitions)["streaming"].ratio


def least_worthwhile(ratios: Dict[int, float]) -> Optional[int]:
    """Return the least size from which on every ratio is WORTHWHILE; None where the largest is not."""
    least = None
    for size in sorted(ratios, reverse=True):
        if ratios[size] > WORTHWHILE:
            break
        least = size
    return least


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args(arguments)
    reason = why_not_fused(torch.zeros(1, 1, 1, 1), 1, "contiguous", "relu")
    if reason is not None:
        raise SystemExit(f"no CPU kernels here: {reason}")
    keep_freed_memory()
    torch.manual_seed(0)
    worst = dict.fromkeys(SIZES, 0.0)
    for name, memory_format in FORMATS.items():
        ratios = {size: time_size(size, memory_format, options.repetitions) for size in SIZES}
        print(f"{name}: " + ", ".join(f"{size // MIB} MiB {ratio:.2f}" for size, ratio in ratios.items()))
        worst = {size: max(worst[size], ratio) for size, ratio in ratios.items()}
    least = least_worthwhile(worst)
    print(f"PROXYNORM_STREAMING_STORES={'off' if least is None else least // MIB}")


if __name__ == "__main__":
    main()
