"""What a program can ask an executor about its last call."""

from __future__ import annotations

from datetime import timedelta
from typing import Dict, List

import torch

from ..errors import createPoptorchError
from . import perf_counters
from .state import ExecutorState


class ExecutorReports(ExecutorState):
    """Names and values of tensors, times and cycles."""

    def getTensorNames(self) -> List[str]:
        """Return names that Options.anchorTensor() takes."""
        if self._program is None:
            raise AssertionError("Model must be compiled before calling getTensorNames")
        return self._program.anchors.known

    def getAnchoredTensor(self, short_name: str) -> torch.Tensor:
        """Return an anchored tensor as of the last call."""
        if short_name not in self._anchors:
            raise AssertionError(f"No tensor with name {short_name} found; there are {list(self._anchors)}")
        return self._anchors[short_name]

    def cycleCount(self) -> int:
        """Device cycles of the last call: here nanoseconds of emulation, a number without meaning for hardware."""
        if not self._options._Popart.options["instrumentWithHardwareCycleCounter"]:
            raise createPoptorchError(
                "Cycle count logging is disabled. Please set option logCycleCount to True to enable."
            )
        if self._program is None or self._program.counters.elapsed() == 0:
            raise createPoptorchError("Please run the model at least once before obtaining cycle count.")
        return int(self._program.counters.elapsed() * 1e9)

    def compilationTime(self) -> timedelta:
        """Return how long compiling took."""
        if not self.isCompiled():
            raise createPoptorchError("Please compile the model before obtaining compilation time.")
        if not self._options._show_compilation_progress_bar:
            raise createPoptorchError("Please set showCompilationProgressBar option to obtain compilation time.")
        return self._compilation_time

    def getPerfCounters(self) -> Dict[str, List[List[float]]]:
        """Return times of the last call: one list per tensor, one entry per micro step."""
        if self._program is None:
            return perf_counters.PerfCounters().as_dict()
        return self._program.counters.as_dict()

    def getHostIpuLatency(self) -> perf_counters.Latency:
        """Seconds from asking for an input to having it: (minimum, maximum, mean)."""
        return perf_counters.latency(self.getPerfCounters(), "input", "input_complete")

    def getComputeLatency(self) -> perf_counters.Latency:
        """Seconds from having the inputs to having the outputs."""
        return perf_counters.latency(self.getPerfCounters(), "input_complete", "output")

    def getIpuHostLatency(self) -> perf_counters.Latency:
        """Seconds from having the outputs to having sent them."""
        return perf_counters.latency(self.getPerfCounters(), "output", "output_complete")

    def getLatency(self) -> perf_counters.Latency:
        """Seconds from asking for an input to having sent the outputs."""
        return perf_counters.latency(self.getPerfCounters(), "input", "output_complete")
