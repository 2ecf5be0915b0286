"""The plan of one execution: does it fit, and how fast will it be."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import List, Optional, Tuple, Union

from torch import nn

from backends.plan.constants import MEMORY_AIM, MEMORY_FACTORS, SMALL_OPERATION_FACTORS, TIME_UNCERTAINTY
from backends.plan.execution import Execution
from backends.plan.hardware import MIB, System, find_system
from backends.plan.memory import StageMemory, stage_memory
from backends.plan.stages import Stage, cut_stages
from backends.plan.timing import Rates, StageSeconds, stage_seconds, update_seconds
from backends.plan.trace import Trace, trace_network


@dataclass(frozen=True)
class StagePlan:
    """One stage with what it needs."""

    stage: Stage
    memory: StageMemory
    seconds: StageSeconds


@dataclass(frozen=True)
class IpuPlan:
    """What `plan_ipu` found. `format_plan(plan)` (report.py) is a table.

    Args:
        execution: as given.
        system: the kind of IPU.
        stages: one for each forward stage.
        refusals: why it cannot run: what, by how much, and ways out. Empty where it can.
        update: seconds of all-reduce and weight update.
    """

    execution: Execution
    system: System
    stages: Tuple[StagePlan, ...]
    refusals: Tuple[str, ...]
    update: float

    @property
    def fits(self) -> bool:
        return not self.refusals

    @property
    def memory_bytes(self) -> int:
        """What one IPU offers."""
        return self.system.memory_without(self.execution.num_io_tiles)

    @property
    def full(self) -> float:
        """Share of its memory that the fullest IPU needs."""
        return max(stage.memory.total for stage in self.stages) / self.memory_bytes

    @property
    def full_range(self) -> Tuple[float, float]:
        """What `full` may be in truth."""
        low, high = MEMORY_FACTORS
        return self.full * low, self.full * high

    @property
    def has_margin(self) -> bool:
        """Whether it fits and leaves memory free for what the estimate does not know."""
        return self.fits and self.full <= MEMORY_AIM

    @property
    def pipeline_cycle(self) -> float:
        """Seconds between two micro-batches: the slowest stage's."""
        return self._cycle()

    def _cycle(self, small_factor: float = 1.0) -> float:
        return max(each.seconds.total + (small_factor - 1) * each.seconds.small for each in self.stages)

    @property
    def pipeline_use(self) -> float:
        """GA / (GA + 2F - 2): the share of cycles in which a stage works; the rest fills and drains the pipeline."""
        accumulation = self.execution.gradient_accumulation
        return accumulation / (accumulation + 2 * len(self.stages) - 2)

    @property
    def step_seconds(self) -> float:
        """Of one weight update: (GA + 2F - 2) cycles, then the update."""
        return self._step_seconds()

    def _step_seconds(self, small_factor: float = 1.0) -> float:
        cycles = self.execution.gradient_accumulation / self.pipeline_use
        return cycles * self._cycle(small_factor) + self.update

    @property
    def images_per_second(self) -> float:
        return self.execution.global_batch_size / self.step_seconds

    def images_per_second_with(self, small_factor: float) -> float:
        """Return what it is if a small operation takes so many times SMALL_OPERATION_CYCLES."""
        return self.execution.global_batch_size / self._step_seconds(small_factor)

    @property
    def images_per_second_range(self) -> Tuple[float, float]:
        """What it may be in truth: off as published runs are, with small operations at either end of their range."""
        fast, slow = (self.images_per_second_with(factor) for factor in SMALL_OPERATION_FACTORS)
        return slow / (1 + TIME_UNCERTAINTY), fast * (1 + TIME_UNCERTAINTY)

    @property
    def multiply_adds(self) -> int:
        """Of one image, forward."""
        return sum(each.stage.multiply_adds for each in self.stages)


def plan_ipu(
    network: Union[nn.Module, Trace],
    execution: Execution,
    *,
    image_size: Optional[int] = None,
    in_channels: int = 3,
    system: Union[str, System] = "mk2",
    rates: Optional[Rates] = None,
) -> IpuPlan:
    """Memory and speed of training a network on IPUs.

    Args:
        network: from images to logits; or its trace, which need not be taken again.
        execution: batch arithmetic, splits, recomputation, precision, optimizer.
        image_size: side of the square images; not used with a trace.
        in_channels: channels of the images; not used with a trace.
        system: a name of SYSTEMS, or a System of your own.
        rates: the fitted constants; None for the calibrated ones.

    Raises:
        ValueError: an unknown system or module path, splits out of order. What is merely too large or against a rule of
            the IPU is not an error but a refusal of the plan.
    """
    if isinstance(system, str):
        system = find_system(system)
    rates = rates or Rates()
    trace = as_trace(network, image_size, in_channels)
    stages = tuple(
        StagePlan(stage, stage_memory(stage, execution, system), stage_seconds(stage, execution, system, rates))
        for stage in cut_stages(trace, execution.splits, execution.checkpoints)
    )
    update = update_seconds([each.stage for each in stages], execution, system, rates)
    refusals = execution.broken_rules() + _too_large(stages, execution, system)
    return IpuPlan(execution, system, stages, tuple(refusals), update)


def as_trace(network: Union[nn.Module, Trace], image_size: Optional[int], in_channels: int) -> Trace:
    """Return the network's trace, taken where it is not one already."""
    if isinstance(network, Trace):
        return network
    if image_size is None:
        raise ValueError("image_size is missing; the planner runs the network on images of that size")
    return trace_network(network, image_size, in_channels)


def _too_large(stages: Tuple[StagePlan, ...], execution: Execution, system: System) -> List[str]:
    offered = system.memory_without(execution.num_io_tiles)
    refusals = []
    for each in stages:
        memory = each.memory
        if memory.total <= offered:
            continue
        parts = sorted(fields(memory), key=lambda field: -int(getattr(memory, field.name)))[:2]
        largest = " and ".join(f"{getattr(memory, part.name) / MIB:,.0f} MiB {part.name}" for part in parts)
        refusals.append(
            f"stage {each.stage.index} needs {memory.total / MIB:,.0f} MiB of the {offered / MIB:,.0f} MiB of one "
            f"{system.name}, {memory.total / offered:.2f} times as much, most of it {largest}; "
            f"{_ways_out(each, execution, offered)}"
        )
    return refusals


def _ways_out(each: StagePlan, execution: Execution, offered: int) -> str:
    ways = []
    optimizer = execution.optimizer
    if execution.micro_batch_size > 1 and each.memory.fixed < offered:
        ways.append("lower micro_batch_size")
    if each.stage.count == 1 and not execution.recomputes:
        ways.append("recompute with checkpoints")
    elif execution.recomputes and not each.stage.is_last and each.memory.activations > each.memory.stash:
        ways.append("add checkpoints in it")
    if each.memory.optimizer_state:
        if execution.replicas > 1 and not optimizer.sharded:
            ways.append("shard the optimizer's state over the replicas")
        if not optimizer.off_chip:
            ways.append("keep the optimizer's state off chip")
    ways.append("use more stages" if each.stage.count == 1 else "move a split or use more stages")
    return "; ".join([", ".join(ways[:-1]) + f", or {ways[-1]}" if len(ways) > 1 else ways[0]])
