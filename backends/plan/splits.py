"""Where to split a network into pipeline stages."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, FrozenSet, List, Optional, Tuple, Union

from torch import nn

from backends.plan.constants import MEMORY_AIM
from backends.plan.execution import Execution
from backends.plan.hardware import System, find_system
from backends.plan.ipu_plan import as_trace
from backends.plan.memory import stage_memory, stash_bytes
from backends.plan.stages import Stage, cut_stage, find_checkpoints
from backends.plan.timing import Rates, stage_seconds
from backends.plan.trace import Trace

Cuts = Dict[Tuple[int, int, Tuple[str, ...]], Stage]  # (first place, end place, checkpoints) -> stage
_Choice = Tuple[Tuple[float, float], Tuple[str, ...]]  # cost of the slowest stage from here on, splits from here on


def propose_splits(
    network: Union[nn.Module, Trace],
    stages: int,
    *,
    image_size: Optional[int] = None,
    in_channels: int = 3,
    system: Union[str, System] = "mk2",
    execution: Optional[Execution] = None,
) -> Tuple[str, ...]:
    """Return module paths at which to begin the second and later stages.

    Among all ways to cut the network at the beginnings of its modules (children of a Sequential, such as blocks), the
    one whose slowest stage is fastest, where one leaves a tenth of the memory free (MEMORY_AIM); otherwise the one
    whose fullest stage is least full.

    Args:
        network: from images to logits, or its trace.
        stages: F, how many to make.
        image_size: side of the images; not used with a trace.
        in_channels: channels of the images; not used with a trace.
        system: the kind of IPU.
        execution: everything but the splits; None: one image in a micro-batch, no checkpoints.

    Raises:
        ValueError: more stages than places to begin one.
    """
    if isinstance(system, str):
        system = find_system(system)
    trace = as_trace(network, image_size, in_channels)
    execution = execution or Execution(micro_batch_size=1, gradient_accumulation=2 * stages - 1)
    return SplitSearch(trace, stages, system).best(execution)


def split_places(trace: Trace) -> List[str]:
    """Return paths where a stage may begin, in the order of execution; one for each operation that begins one.

    Only modules whose path ends in a number, that is children of a Sequential: between blocks few tensors are alive. A
    Sequential of blocks (stages.1) begins where its first block (stages.1.0) does: that is called by the block's path.
    """
    found: Dict[int, str] = {}
    for path, begin in trace.begins.items():
        if 0 < begin < len(trace.operations) and path.rsplit(".", 1)[-1].isdigit():
            found[begin] = max(found.get(begin, path), path, key=lambda name: name.count("."))
    return [found[begin] for begin in sorted(found)]


class SplitSearch:
    """Dynamic programming over (place where a stage begins, its index): the best way from there to the end.

    Args:
        trace: of the network.
        stages: F, how many to make.
        system: the kind of IPU.
        cut: stages that searches on the same trace share; None: its own.

    Raises:
        ValueError: more stages than places to begin one.
    """

    def __init__(self, trace: Trace, stages: int, system: System, cut: Optional[Cuts] = None) -> None:
        self._trace, self.stages, self.system = trace, stages, system
        self.places = [""] + split_places(trace)
        if not 1 <= stages <= len(self.places):
            raise ValueError(f"stages {stages} must be from 1 to {len(self.places)}, the places where one can begin")
        self._begins = [trace.begins[path] for path in self.places] + [len(trace.operations)]
        self._known: Dict[Tuple[int, int, bool], Tuple[int, float]] = {}  # (bytes without stash, seconds)
        self._cut: Cuts = {} if cut is None else cut

    def best(self, execution: Execution) -> Tuple[str, ...]:
        """Split whose slowest stage is fastest, among those with a margin; else with the least full fullest stage."""
        # How many splits there are decides what is recomputed; which they are does not.
        execution = replace(execution, splits=tuple(self.places[1 : self.stages]))
        checkpoints = find_checkpoints(self._trace, execution.checkpoints)
        last, end = self.stages - 1, len(self.places)
        self._known.clear()
        best: Dict[int, _Choice] = {i: (self._cost(i, end, last, execution, checkpoints), ()) for i in range(last, end)}
        for index in range(last - 1, -1, -1):
            step: Dict[int, _Choice] = {}
            for i in range(index, end - (last - index)):
                options = [
                    (max(self._cost(i, j, index, execution, checkpoints), cost), (self.places[j], *splits))
                    for j, (cost, splits) in best.items()
                    if j > i
                ]
                step[i] = min(options, key=lambda option: option[0])
            best = step
        return best[0][1]

    def _cost(
        self, first: int, end: int, index: int, execution: Execution, checkpoints: FrozenSet[int]
    ) -> Tuple[float, float]:
        """(memory over what a plan may fill or 1, seconds) of one stage, to be compared in this order."""
        key = (first, end, execution.checkpoints)
        if key not in self._cut:
            begin, stop = self._begins[first], self._begins[end]
            self._cut[key] = cut_stage(self._trace, index, self.stages, begin, stop, checkpoints)
        stage = replace(self._cut[key], index=index, count=self.stages)  # the rest does not depend on its place
        # What does not depend on the place in the pipeline is reckoned once.
        known = (first, end, stage.is_last)
        if known not in self._known:
            memory = stage_memory(stage, execution, self.system)
            seconds = stage_seconds(stage, execution, self.system, Rates()).total
            self._known[known] = (memory.total - memory.stash, seconds)
        rest, seconds = self._known[known]
        needed = rest + stash_bytes(stage, execution)
        return max(1.0, needed / (MEMORY_AIM * self.system.memory_without(execution.num_io_tiles))), seconds
