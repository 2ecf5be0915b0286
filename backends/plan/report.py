"""A plan as text for terminals."""

from __future__ import annotations

import math
import textwrap
from typing import List, Tuple

from backends.plan.constants import (
    DECODED_IMAGES_PER_CORE,
    MEMORY_AIM,
    SMALL_OPERATION_CYCLES,
    SMALL_OPERATION_FACTORS,
)
from backends.plan.hardware import MIB
from backends.plan.ipu_plan import IpuPlan, StagePlan
from configs.counted import counted

PARTS = ("weights", "optimizer_state", "accumulators", "stash", "activations", "temporaries", "code")
_HEADS = ("weights", "state", "accum.", "stash", "activ.", "temp.", "code")


def format_plan(plan: IpuPlan) -> str:
    """Return one line for each stage, then speed, then why it is refused."""
    execution, offered = plan.execution, plan.memory_bytes
    lines = [
        f"{plan.system.name}: {counted(execution.ipus, 'IPU')} = {counted(execution.replicas, 'replica')} x "
        f"{counted(execution.ipus_per_replica, 'stage')}, {offered / MIB:,.0f} MiB an IPU; "
        f"bits of activations {8 * execution.stored_bytes}, weights {8 * execution.weight_bytes}, "
        f"partial sums {8 * execution.partial_bytes}",
        f"global_batch_size {execution.global_batch_size} = micro_batch_size {execution.micro_batch_size} x "
        f"gradient_accumulation {execution.gradient_accumulation} x replicas {execution.replicas}",
        "",
        f"{'MiB':24}" + "".join(f"{head:>9}" for head in _HEADS) + f"{'all':>9}{'full':>7}{'GMACs':>8}{'M cycles':>10}",
    ]
    lines += [_stage_line(each, plan) for each in plan.stages]
    seconds = plan.stages[0].seconds
    lines += [
        "",
        f"{plan.multiply_adds / 1e9:.2f} G multiply-adds an image, forward; pipeline use {plan.pipeline_use:.1%}, "
        f"stash depths {', '.join(str(each.stage.stash_depth) for each in plan.stages)}",
        f"a micro-batch every {1e3 * plan.pipeline_cycle:.2f} ms, {1e3 * seconds.host:.2f} ms of it for images "
        "from the host",
        f"a weight update every {1e3 * plan.step_seconds:.1f} ms, {1e3 * plan.update:.2f} ms of it for all-reduce and "
        "update",
        f"{plan.images_per_second:,.0f} images/s expected, {_range(plan.images_per_second_range)} by what the estimate "
        "has been off",
        f"fullest IPU {plan.full:.0%}, {plan.full_range[0]:.0%} to {plan.full_range[1]:.0%} by what is known to run",
    ]
    lines += _sensitivity(plan)
    lines += settings_by_hand(plan)
    if plan.fits and not plan.has_margin:
        lines += _wrapped(
            f"narrow: more than {MEMORY_AIM:.0%} of the memory; the compiler may not fit it: lower micro_batch_size"
        )
    for refusal in plan.refusals:
        lines += _wrapped(f"refused: {refusal}")
    return "\n".join(lines)


def _sensitivity(plan: IpuPlan) -> List[str]:
    """Return what the assumption about small operations decides, where there are any."""
    if not any(each.seconds.small for each in plan.stages):
        return []
    factors = (SMALL_OPERATION_FACTORS[0], 1.0, SMALL_OPERATION_FACTORS[1])
    cycles = ", ".join(f"{factor * SMALL_OPERATION_CYCLES:,.0f}" for factor in factors[:-1])
    speeds = ", ".join(f"{plan.images_per_second_with(factor):,.0f}" for factor in factors[:-1])
    return [
        f"with {cycles} or {factors[-1] * SMALL_OPERATION_CYCLES:,.0f} cycles for an operation on values of channels: "
        f"{speeds} or {plan.images_per_second_with(factors[-1]):,.0f} images/s"
    ]


def settings_by_hand(plan: IpuPlan) -> List[str]:
    """Return the plan as settings of train.py, so that it can be repeated and changed by hand."""
    execution = plan.execution
    values = {
        "ipu.splits": f"[{','.join(execution.splits)}]",
        "ipu.checkpoints": f"[{','.join(execution.checkpoints)}]",
        "batch.micro_batch_size": f"{execution.micro_batch_size}",
    }
    return ["the same by hand:", *(f"  --set '{key}={value}'" for key, value in values.items())]


def decoding_cores(images_per_second: float) -> int:
    """CPU cores of the host that keep up by decoding JPEG files."""
    return math.ceil(images_per_second / DECODED_IMAGES_PER_CORE)


def _range(values: Tuple[float, float]) -> str:
    return f"{values[0]:,.0f} to {values[1]:,.0f}"


def _wrapped(text: str) -> List[str]:
    return textwrap.wrap(text, 118, subsequent_indent="  ")


def _stage_line(each: StagePlan, plan: IpuPlan) -> str:
    index = each.stage.index
    begins_at = plan.execution.splits[index - 1] if index else "input"
    values = "".join(f"{getattr(each.memory, part) / MIB:>9,.1f}" for part in PARTS)
    cycles = each.seconds.total * plan.system.clock_hertz / 1e6
    return (
        f"{f'{index} from {begins_at}':24}{values}{each.memory.total / MIB:>9,.1f}"
        f"{each.memory.total / plan.memory_bytes:>7.0%}{each.stage.multiply_adds / 1e9:>8.3f}{cycles:>10.2f}"
    )
