"""How this project measures time: interleaved variants, paired ratios, and a guard against a busy machine.

On a CPU by the wall clock, on a GPU by events of its stream.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Callable, Dict, List, Mapping

import torch

# A repetition counts only if a fixed copy, timed beside it, took at most this many times the best copy.
COPY_GUARD = 1.6
# 64 MB, more than caches hold: a smaller copy is fast or slow by what the variants left there.
COPY_ELEMENTS = 16 << 20
# Repetitions tried, as a multiple of those needed, before the machine counts as too busy.
MOST_ATTEMPTS = 4
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Timing:
    """Times of one variant: median in milliseconds, and the paired ratio to the baseline with its quartiles."""

    milliseconds: float
    ratio: float
    first_quartile: float
    third_quartile: float
    repetitions: int


def seconds(run: Callable[[], object], calls: int = 1, device: torch.device = CPU) -> float:
    """Time of one call, averaged over `calls`: of the wall clock, or of the work put on a GPU's stream."""
    if device.type == "cuda":
        return _seconds_on_gpu(run, calls)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def _seconds_on_gpu(run: Callable[[], object], calls: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return 1e-3 * begin.elapsed_time(end) / calls


def measure(
    variants: Mapping[str, Callable[[], object]],
    baseline: str,
    *,
    repetitions: int = 15,
    shortest_sample_seconds: float = 0.004,
    device: torch.device = CPU,
) -> Dict[str, Timing]:
    """Time every variant in every repetition, one after another, and compare within repetitions.

    Args:
        variants: name -> function of no argument.
        baseline: the name that ratios refer to.
        repetitions: how many must pass the copy guard.
        shortest_sample_seconds: a variant faster than this is called several times a repetition.
        device: where the variants compute.

    Raises:
        RuntimeError: the machine is too busy.
    """
    source, target = torch.ones(COPY_ELEMENTS, device=device), torch.zeros(COPY_ELEMENTS, device=device)
    calls = {}
    for name, run in variants.items():
        run()
        run()
        calls[name] = max(1, round(shortest_sample_seconds / max(seconds(run, device=device), 1e-7)))
    copies: List[float] = []
    times: Dict[str, List[float]] = {name: [] for name in variants}
    kept: List[int] = []
    while len(kept) < repetitions and len(copies) < MOST_ATTEMPTS * repetitions:
        before = seconds(lambda: target.copy_(source), device=device)
        for name, run in variants.items():
            times[name].append(seconds(run, calls[name], device))
        copies.append(max(before, seconds(lambda: target.copy_(source), device=device)))
        kept = [i for i, copy in enumerate(copies) if copy <= COPY_GUARD * min(copies)]
    if len(kept) < repetitions:
        raise RuntimeError(
            f"the machine is busy: {len(kept)} of {len(copies)} repetitions passed the copy guard, {repetitions} are "
            "needed; stop other programs and try again"
        )
    return {name: _timing([times[name][i] for i in kept], [times[baseline][i] for i in kept]) for name in variants}


def _timing(times: List[float], baseline: List[float]) -> Timing:
    ratios = [t / b for t, b in zip(times, baseline)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return Timing(1e3 * statistics.median(times), statistics.median(ratios), quartiles[0], quartiles[2], len(ratios))


def copy_bytes_per_second(num_bytes: int, repetitions: int = 15, device: torch.device = CPU) -> float:
    """Return bytes read and written by torch's copy of a tensor of this size, per second; the median."""
    source, target = torch.ones(num_bytes // 4, device=device), torch.zeros(num_bytes // 4, device=device)
    times = [seconds(lambda: target.copy_(source), device=device) for _ in range(repetitions)]
    return 2 * num_bytes / statistics.median(times)
