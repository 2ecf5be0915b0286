"""Times of input and output of the last call, as the executor's latency functions report them."""

from __future__ import annotations

import time
from typing import Dict, List, Tuple

Latency = Tuple[float, float, float]


class PerfCounters:
    """Four lists per tensor, one time in seconds per micro batch: input, input_complete, output, output_complete."""

    def __init__(self) -> None:
        self._inputs = 0
        self._outputs = 0
        self._replicas = 1
        self._returned: List[int] = []
        self._ticks: List[float] = []

    def start(self, inputs: int, outputs: int, replicas: int, returned: List[int]) -> None:
        """Begin a call with so many input and output tensors; outputs are sent after the micro steps `returned`."""
        self._inputs, self._outputs, self._replicas, self._returned = inputs, outputs, replicas, returned
        self._ticks = [time.perf_counter()]

    def elapsed(self) -> float:
        """Seconds of the last call; 0 before the first."""
        return self._ticks[-1] - self._ticks[0] if len(self._ticks) > 1 else 0.0

    def tick(self, now: float) -> None:
        """Note that a micro step of all replicas is done."""
        self._ticks.append(now)

    def as_dict(self) -> Dict[str, List[List[float]]]:
        """Return the counters of the last call; transfers take no time here, and with synthetic data there are none."""
        starts = [time for time in self._ticks[:-1] for _ in range(self._replicas)]
        ends = [self._ticks[step + 1] for step in self._returned if self._ticks for _ in range(self._replicas)]
        before = [list(starts) for _ in range(self._inputs)] or [[]]
        after = [list(ends) for _ in range(self._outputs)] or [[]]
        return {
            "input": before,
            "input_complete": [list(times) for times in before],
            "output": after,
            "output_complete": [list(times) for times in after],
        }


def latency(counters: Dict[str, List[List[float]]], start: str, end: str) -> Latency:
    """(minimum, maximum, mean) of the seconds from event `start` to event `end`; zeros before the first call.

    Where several inputs belong to one output, the first of them counts.
    """
    starts, ends = counters[start][0], counters[end][0]
    if not ends:
        return (0.0, 0.0, 0.0)
    share = len(starts) // len(ends)
    durations = [after - min(starts[index * share : (index + 1) * share]) for index, after in enumerate(ends)]
    return (min(durations), max(durations), sum(durations) / len(durations))
