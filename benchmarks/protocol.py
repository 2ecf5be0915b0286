"""How this project measures time: variants interleaved in one process, paired ratios, a guard against a busy machine."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Callable, Dict, List

import torch

# A repetition counts only if a fixed copy, timed beside it, took at most this many times the best copy.
COPY_GUARD = 1.6
COPY_ELEMENTS = 4 << 20

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


@dataclass(frozen=True)
class Timing:
    """Times of one variant: median in milliseconds, and the paired ratio to the baseline with its quartiles."""

    milliseconds: float
    ratio: float
    first_quartile: float
    third_quartile: float
    repetitions: int


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks, as train.py does: otherwise page faults dominate and hide the operators."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def seconds(run: Callable[[], object], calls: int = 1) -> float:
    """Wall time of one call, averaged over `calls`."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def measure(
    variants: Dict[str, Callable[[], object]],
    baseline: str,
    *,
    repetitions: int = 15,
    shortest_sample_seconds: float = 0.004,
) -> Dict[str, Timing]:
    """Time every variant in every repetition, one after another, and compare within repetitions.

    Args:
        variants: name -> function of no argument.
        baseline: the name that ratios refer to.
        repetitions: kept or dropped together, by the copy guard; at least half must be kept.
        shortest_sample_seconds: a variant faster than this is called several times a repetition.

    Raises:
        RuntimeError: the machine was too busy: over half of the repetitions were dropped.
    """
    source, target = torch.ones(COPY_ELEMENTS), torch.zeros(COPY_ELEMENTS)
    calls = {}
    for name, run in variants.items():
        run()
        run()
        calls[name] = max(1, round(shortest_sample_seconds / max(seconds(run), 1e-7)))
    copies: List[float] = []
    times: Dict[str, List[float]] = {name: [] for name in variants}
    for _ in range(repetitions):
        before = seconds(lambda: target.copy_(source))
        for name, run in variants.items():
            times[name].append(seconds(run, calls[name]))
        copies.append(max(before, seconds(lambda: target.copy_(source))))
    kept = [i for i, copy in enumerate(copies) if copy <= COPY_GUARD * min(copies)]
    if 2 * len(kept) < repetitions:
        raise RuntimeError(f"the machine is busy: {repetitions - len(kept)} of {repetitions} repetitions dropped; try again")
    return {name: _timing([times[name][i] for i in kept], [times[baseline][i] for i in kept]) for name in variants}


def _timing(times: List[float], baseline: List[float]) -> Timing:
    ratios = [t / b for t, b in zip(times, baseline)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return Timing(1e3 * statistics.median(times), statistics.median(ratios), quartiles[0], quartiles[2], len(ratios))


def copy_bytes_per_second(num_bytes: int, repetitions: int = 15) -> float:
    """Bytes read and written by torch's copy of a tensor of this size, per second; the median."""
    source, target = torch.ones(num_bytes // 4), torch.zeros(num_bytes // 4)
    times = [seconds(lambda: target.copy_(source)) for _ in range(repetitions)]
    return 2 * num_bytes / statistics.median(times)
