"""Proposals: how large a micro-batch may be, and how to use a given number of IPUs."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, List, Optional, Sequence, Union

from torch import nn

from backends.plan.constants import MEMORY_AIM
from backends.plan.execution import Execution
from backends.plan.hardware import System, find_system
from backends.plan.ipu_plan import IpuPlan, as_trace, plan_ipu
from backends.plan.memory import stage_memory
from backends.plan.splits import Cuts, SplitSearch, split_places
from backends.plan.stages import cut_stages
from backends.plan.trace import Trace

_LARGEST_MICRO_BATCH = 4096  # of the search; no known configuration comes near


def largest_micro_batch(
    network: Union[nn.Module, Trace],
    execution: Execution,
    *,
    image_size: Optional[int] = None,
    in_channels: int = 3,
    system: Union[str, System] = "mk2",
) -> int:
    """Return the largest micro_batch_size whose stages all leave a tenth of the memory free (MEMORY_AIM), or 0.

    Everything else is as in `execution`.

    Args:
        network: from images to logits, or its trace.
        execution: its own micro_batch_size plays no role.
        image_size: side of the images; not used with a trace.
        in_channels: channels of the images; not used with a trace.
        system: the kind of IPU.
    """
    if isinstance(system, str):
        system = find_system(system)
    trace = as_trace(network, image_size, in_channels)
    stages = cut_stages(trace, execution.splits, execution.checkpoints)
    offered = MEMORY_AIM * system.memory_without(execution.num_io_tiles)

    def fits(size: int) -> bool:
        sized = replace(execution, micro_batch_size=size)
        return all(stage_memory(stage, sized, system).total <= offered for stage in stages)

    return _largest(range(1, _LARGEST_MICRO_BATCH + 1), fits)


def propose_plan(
    trace: Trace,
    like: Execution,
    *,
    ipus: int,
    global_batch_size: int,
    system: System,
    ipus_per_replica: Optional[int] = None,
    micro_batch_size: Optional[int] = None,
) -> IpuPlan:
    """Return the fastest plan on so many IPUs that leaves a tenth of the memory free; else the one that is least full.

    For each number of stages that is a power of 2, with and without the blocks' outputs as checkpoints: the largest
    micro-batch that divides the replica's share of the global batch, fills the pipeline and leaves that margin with
    balanced splits, or else the smallest one.

    Args:
        trace: of the network.
        like: precision, optimizer and so on; its batch arithmetic, splits and recomputation are replaced.
        ipus: all of them, a power of 2.
        global_batch_size: images per weight update.
        system: the kind of IPU.
        ipus_per_replica: stages, to be kept; None: free.
        micro_batch_size: to be kept, for norms that depend on it; None: free.

    Raises:
        ValueError: ipus is not a power of 2; the sizes do not divide, or leave too few micro-batches to fill a
            pipeline.
    """
    if ipus < 1 or ipus & (ipus - 1):
        raise ValueError(f"ipus {ipus} is not a power of 2; systems allocate 1, 2, 4, ... 256 IPUs")
    counts = [1 << power for power in range(ipus.bit_length())] if ipus_per_replica is None else [ipus_per_replica]
    plans: List[IpuPlan] = []
    cut: Cuts = {}  # shared: what a stage needs does not depend on the number of stages
    for stages in counts:
        if stages <= len(split_places(trace)) + 1 and ipus % stages == 0:
            share, remainder = divmod(global_batch_size * stages, ipus)
            most = share // (2 * stages - 1)  # a pipeline needs 2F - 1 micro-batches
            sizes = [size for size in range(1, most + 1) if share % size == 0]
            if micro_batch_size is not None:
                sizes = [size for size in sizes if size == micro_batch_size]
            if sizes and not remainder:
                plans += _plans_of(
                    trace, replace(like, replicas=ipus // stages), SplitSearch(trace, stages, system, cut), share, sizes
                )
    if not plans:
        raise ValueError(
            f"global_batch_size {global_batch_size} on {ipus} IPUs cannot be cut into "
            f"{'micro-batches' if micro_batch_size is None else f'micro-batches of {micro_batch_size}'} that fill "
            f"{'any pipeline' if ipus_per_replica is None else f'{ipus_per_replica} pipeline stages'} of up to "
            f"{len(split_places(trace)) + 1}; use a global_batch_size that is a larger multiple of the replicas, fewer "
            "IPUs, or another micro_batch_size"
        )
    return max(
        plans, key=lambda plan: (plan.fits, plan.has_margin, plan.images_per_second if plan.has_margin else -plan.full)
    )


def _plans_of(trace: Trace, like: Execution, search: SplitSearch, share: int, sizes: Sequence[int]) -> List[IpuPlan]:
    """With each choice of checkpoints, the plan with the largest micro-batch that has a margin, else the smallest."""
    plans = []
    for checkpoints in ((), tuple(search.places[1:])):
        recompute = bool(checkpoints) or search.stages > 1
        base = replace(like, splits=(), checkpoints=checkpoints, recompute=recompute)

        def plan(size: int, base: Execution = base) -> IpuPlan:
            sized = replace(base, micro_batch_size=size, gradient_accumulation=share // size)
            return plan_ipu(trace, replace(sized, splits=search.best(sized)), system=search.system)

        plans.append(plan(_largest(sizes, lambda size, plan=plan: plan(size).has_margin) or sizes[0]))  # type: ignore[misc]
    return plans


def _largest(sizes: Sequence[int], fits: Callable[[int], bool]) -> int:
    """Return the largest of rising sizes that fits, where all smaller ones fit too; 0 if none does."""
    low, high = 0, len(sizes)  # sizes[:low] fit, sizes[high:] do not
    while low < high:
        middle = (low + high) // 2
        if fits(sizes[middle]):
            low = middle + 1
        else:
            high = middle
    return sizes[low - 1] if low else 0
