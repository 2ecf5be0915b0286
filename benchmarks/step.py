"""Time of whole training steps with every norm, as a ratio to batch norm, and what the norm itself costs.

The step is the program's own: scaling of pixels, forward, loss, backward, the check for non-finite gradients, update.

    python -m benchmarks.step                       both networks, both executions, every variant
    python -m benchmarks.step --quick               NCHW float32; no norm, batch norm, GN+PN with and without recompute
    python -m benchmarks.step --only resnet50       workloads whose name contains this

The norm's overhead is (t - none) / (batch norm - none), from the medians: 0 is a norm that costs nothing, 1 is batch
norm.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from backends.host_memory import keep_freed_memory
from benchmarks.networks import (
    BATCH_NORM,
    GNPN,
    GNPN_RECOMPUTE,
    NCHW_FLOAT32,
    NO_NORM,
    NUM_GROUPS,
    VARIANTS,
    WORKLOADS,
    Workload,
    training_step,
)
from benchmarks.protocol import Timing, measure
from benchmarks.results import RESULTS, write_results

QUICK_VARIANTS = (BATCH_NORM, NO_NORM, GNPN, GNPN_RECOMPUTE)


def time_workload(workload: Workload, names: Sequence[str], repetitions: int) -> Dict[str, Any]:
    """Return one row: the ratio to batch norm and the norm's overhead, by variant."""
    steps = {name: training_step(workload, VARIANTS[name]) for name in names}
    timings = measure(steps, BATCH_NORM, repetitions=repetitions)
    overheads = norm_overheads(timings)
    for name, timing in timings.items():
        print(
            f"{workload.name}: {name} {timing.ratio:.3f} [{timing.first_quartile:.3f}-{timing.third_quartile:.3f}] "
            f"{timing.milliseconds:.0f} ms, overhead {overheads[name]:.2f}",
            flush=True,
        )
    return {
        "workload": workload.name,
        "timings": {name: dataclasses.asdict(timing) for name, timing in timings.items()},
        "norm_overhead": overheads,
    }


def norm_overheads(timings: Dict[str, Timing]) -> Dict[str, float]:
    """(t - none) / (batch norm - none)."""
    none = timings[NO_NORM].milliseconds
    batch_norm = timings[BATCH_NORM].milliseconds - none
    return {name: (timing.milliseconds - none) / batch_norm for name, timing in timings.items()}


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only NCHW float32 and four variants")
    parser.add_argument("--only", default="", help="workloads whose name contains this")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    names: List[str] = [name for name in VARIANTS if not options.quick or name in QUICK_VARIANTS]
    settings = {"repetitions": options.repetitions, "groups": NUM_GROUPS}
    for workload in WORKLOADS:
        if options.only in workload.name and (not options.quick or workload.execution == NCHW_FLOAT32):
            row = time_workload(workload, names, options.repetitions)
            write_results("step", settings, [row], folder=options.results)  # a stopped run keeps what it has


if __name__ == "__main__":
    main()
