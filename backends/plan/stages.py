"""A trace cut into pipeline stages, and what each of them must keep."""

from __future__ import annotations

import bisect
import difflib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Dict, FrozenSet, List, Sequence, Tuple

from backends.plan.execution import Execution
from backends.plan.trace import INPUT, Operation, Size, Trace


class ChannelOperations(Tuple[Operation, ...]):
    """Operations on values of channels alone, counted once however often a stage is weighed."""

    @cached_property
    def kinds(self) -> int:
        """Those that differ in name or size."""
        return len({(each.name, each.moved) for each in self})

    @cached_property
    def layers(self) -> Dict[str, int]:
        """Module path -> how many it runs."""
        return Counter(each.path for each in self)


@dataclass(frozen=True)
class Stage:
    """Consecutive operations on one IPU.

    Args:
        index: 0 for the first.
        count: F, the number of forward stages.
        products: the convolutions and matrix products that it runs.
        vectors: elements that its other operations read and write.
        small: those of the other operations that compute on values of channels alone, proxies apart.
        proxies: the same of the layers with Proxy Normalization.
        largest_vector: elements of one image that the largest of these reads and writes.
        parameters: sizes of the parameters it owns.
        inputs: tensors that come from the stage before.
        image: the network's input, on the first stage.
        kept: tensors stored in the forward pass for the backward pass when activations are recomputed: what enters, the
            checkpoints, and what goes to the next stage.
        segments: what the backward pass needs besides, in parts from one checkpoint to the next.
    """

    index: int
    count: int
    products: Tuple[Operation, ...]
    vectors: Size
    small: ChannelOperations
    proxies: ChannelOperations
    largest_vector: int
    parameters: Tuple[int, ...]
    inputs: Size
    image: Size
    kept: Size
    segments: Tuple[Size, ...]

    @property
    def is_last(self) -> bool:
        return self.index == self.count - 1

    @property
    def stash_depth(self) -> int:
        """Micro-batches whose kept tensors wait for their backward pass: 2 (F - 1 - s) + 1, and none on the last stage.

        Source: PopART's pipeline transform.
        """
        return 0 if self.is_last else 2 * (self.count - 1 - self.index) + 1

    @property
    def saved(self) -> Size:
        """All that the backward pass needs and that `kept` does not hold."""
        return sum(self.segments, Size())

    @property
    def multiply_adds(self) -> int:
        """Of one image, forward."""
        return sum(operation.multiply_adds for operation in self.products)

    @property
    def num_parameters(self) -> int:
        return sum(self.parameters)


def stage_recomputes(stage: Stage, execution: Execution) -> bool:
    """Whether this stage recomputes activations: never the last of a pipeline."""
    return execution.recomputes and (stage.count == 1 or not stage.is_last)


def cut_stages(trace: Trace, splits: Sequence[str] = (), checkpoints: Sequence[str] = ()) -> List[Stage]:
    """Return the stages that begin at the modules `splits`, in the order of execution.

    Raises:
        ValueError: an unknown path, a split that is not after the one before it, a checkpoint without an output.
    """
    starts = [0]
    for path in splits:
        start = _find(trace.begins, path, "pipeline split")
        if start <= starts[-1]:
            raise ValueError(
                f"pipeline split {path} begins at operation {start}, not after the start of the stage before it "
                f"(operation {starts[-1]}); order splits by execution, with at least one operation in each stage"
            )
        starts.append(start)
    marked = find_checkpoints(trace, checkpoints)
    ends = starts[1:] + [len(trace.operations)]
    if starts[-1] >= ends[-1]:
        raise ValueError(f"pipeline split {splits[-1]} leaves no operation for its stage; remove it")
    count = len(starts)
    return [cut_stage(trace, i, count, starts[i], ends[i], marked) for i in range(count)]


def find_checkpoints(trace: Trace, paths: Sequence[str]) -> FrozenSet[int]:
    """Return the tensors that these modules return.

    Raises:
        ValueError: an unknown path.
    """
    return frozenset(_find(trace.outputs, path, "checkpoint") for path in paths)


def cut_stage(trace: Trace, index: int, count: int, start: int, end: int, checkpoints: FrozenSet[int]) -> Stage:
    """Stage `index` of `count`: the operations from `start` up to `end`."""
    entering, image, made, saved = Size(), Size(), Size(), []
    borders = sorted({trace.tensors[i].made_by for i in checkpoints if start <= trace.tensors[i].made_by < end})
    for i, tensor in enumerate(trace.tensors):
        if tensor.made_by == INPUT and start == 0:
            image = image + tensor.size
        elif tensor.made_by < start:
            if start <= tensor.read_until:
                entering = entering + tensor.size
        elif tensor.made_by < end and (i in checkpoints or end <= tensor.read_until):
            made = made + tensor.size
        elif tensor.made_by < end and any(start <= saver < end for saver in tensor.saved_by):
            saved.append(tensor)
    vectors = [operation for operation in trace.operations[start:end] if not operation.is_product]
    segments = [Size() for _ in range(len(borders) + 1)]
    for tensor in saved:
        place = bisect.bisect_left(borders, tensor.made_by)
        segments[place] = segments[place] + tensor.size
    return Stage(
        index=index,
        count=count,
        products=tuple(operation for operation in trace.operations[start:end] if operation.is_product),
        vectors=sum((operation.moved for operation in vectors), Size()),
        small=ChannelOperations(each for each in vectors if each.is_small and each.path not in trace.proxies),
        proxies=ChannelOperations(each for each in vectors if each.is_small and each.path in trace.proxies),
        largest_vector=max((operation.moved.per_image for operation in vectors), default=0),
        parameters=tuple(size for first, sizes in trace.parameters.values() if start <= first < end for size in sizes),
        inputs=entering,
        image=image,
        kept=entering + made,
        segments=tuple(segments),
    )


def _find(places: Dict[str, int], path: str, what: str) -> int:
    if path not in places:
        near = difflib.get_close_matches(path, [name for name in places if name], n=3, cutoff=0.0)
        raise ValueError(f"{what} {path!r} is not a module of the network; the nearest are {', '.join(near)}")
    return places[path]
