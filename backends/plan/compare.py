"""Batch norm beside a norm without batch dependence: what memory the missing dependence frees."""

from __future__ import annotations

from dataclasses import replace

from backends.plan.execution import Execution
from backends.plan.hardware import MIB, System
from backends.plan.ipu_plan import IpuPlan, plan_ipu
from backends.plan.splits import propose_splits
from backends.plan.trace import Trace
from configs.counted import counted


def format_norm_comparison(
    batch_norm: Trace, independent: Trace, norm_batch_size: int, like: Execution, system: System
) -> str:
    """Return a table of the fullest IPU's memory: batch norm at its normalization batch, the other norm at 1, 2, 4, ...

    On IPUs replicas cannot share statistics, so batch norm needs micro-batches of norm_batch_size images. The other
    norm gives the same weights with any micro-batch. The images per weight update stay the same in all rows.

    Args:
        batch_norm: trace of the network with batch norm.
        independent: trace of the network with, for example, GN+PN.
        norm_batch_size: of batch norm.
        like: one execution; the number of its splits is kept, and its splits and batch arithmetic are replaced.
        system: the kind of IPU.

    Raises:
        ValueError: norm_batch_size does not divide the replica's share of the global batch.
    """
    share = like.micro_batch_size * like.gradient_accumulation
    if share % norm_batch_size:
        raise ValueError(
            f"norm_batch_size {norm_batch_size} does not divide the {share} images that a replica has in each weight "
            "update; choose a divisor"
        )
    sizes = [size for size in range(1, norm_batch_size + 1) if norm_batch_size % size == 0]
    tied = _plan(batch_norm, norm_batch_size, share, like, system)
    lines = [
        f"fullest of {counted(like.ipus_per_replica, 'IPU')}, {share} images per weight update and replica",
        f"{'norm':34}{'micro-batch':>12}{'MiB':>9}{'full':>7}{'freed MiB':>11}{'images/s':>10}",
        _line(f"batch, norm_batch_size {norm_batch_size}", tied, tied),
    ]
    lines += [_line("without batch dependence", _plan(independent, n, share, like, system), tied) for n in sizes]
    return "\n".join(lines)


def _plan(trace: Trace, micro_batch_size: int, share: int, like: Execution, system: System) -> IpuPlan:
    execution = replace(like, micro_batch_size=micro_batch_size, gradient_accumulation=share // micro_batch_size)
    splits = propose_splits(trace, like.ipus_per_replica, execution=execution, system=system)
    return plan_ipu(trace, replace(execution, splits=splits), system=system)


def _line(name: str, plan: IpuPlan, tied: IpuPlan) -> str:
    used, before = _fullest(plan), _fullest(tied)
    speed = f"{plan.images_per_second:,.0f}" if plan.fits else "refused"
    return (
        f"{name:34}{plan.execution.micro_batch_size:>12}{used / MIB:>9,.0f}{used / plan.memory_bytes:>7.0%}"
        f"{(before - used) / MIB:>11,.0f}{speed:>10}"
    )


def _fullest(plan: IpuPlan) -> int:
    return max(each.memory.total for each in plan.stages)
