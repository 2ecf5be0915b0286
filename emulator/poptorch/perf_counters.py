"""Times of input and output of the last call, as the executor's latency functions report them."""

from __future__ import annotations

import time
from typing import Dict, List, Tuple

Latency = Tuple[float, float, float]


class PerfCounters:
    """Four lists per tensor, one time in seconds per micro step: input, input_complete, output, output_complete."""

    def __init__(self) -> None:
        self._inputs = 0
        self._outputs = 0
        self._ticks: List[float] = []

    def start(self, inputs: int, outputs: int) -> None:
        """Begin a call with so many input and output tensors."""
        self._inputs, self._outputs = inputs, outputs
        self._ticks = [time.perf_counter()]

    def elapsed(self) -> float:
        """Seconds of the last call; 0 before the first."""
        return self._ticks[-1] - self._ticks[0] if len(self._ticks) > 1 else 0.0

    def tick(self, now: float) -> None:
        """A micro step is done."""
        self._ticks.append(now)

    def as_dict(self) -> Dict[str, List[List[float]]]:
        """The counters of the last call; transfers take no time here."""
        starts, ends = self._ticks[:-1], self._ticks[1:]
        before = [list(starts) for _ in range(self._inputs)] or [[]]
        after = [list(ends) for _ in range(self._outputs)] or [[]]
        return {
            "input": before,
            "input_complete": [list(times) for times in before],
            "output": after,
            "output_complete": [list(times) for times in after],
        }


def latency(counters: Dict[str, List[List[float]]], start: str, end: str) -> Latency:
    """(minimum, maximum, mean) of the seconds from event `start` to event `end`; zeros before the first call."""
    starts, ends = counters[start][0], counters[end][0]
    durations = [after - before for before, after in zip(starts, ends)]
    if not durations:
        return (0.0, 0.0, 0.0)
    return (min(durations), max(durations), sum(durations) / len(durations))
