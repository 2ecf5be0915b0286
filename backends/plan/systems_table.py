"""One experiment on the usual systems: how each would execute it, as a table."""

from __future__ import annotations

from typing import Callable, Tuple

from backends.plan.ipu_plan import IpuPlan
from backends.plan.report import decoding_cores

# One C600 card, one C2 card, and pods of 4, 16 and 64.
SYSTEM_SIZES: Tuple[Tuple[str, int], ...] = (
    ("c600", 1),
    ("c2", 2),
    *((system, ipus) for system in ("mk1", "mk2") for ipus in (4, 16, 64)),
)
_COLUMNS = (
    "experiment", "ipu.system, ipu.ipus", "--num-replicas", "--ipus-per-replica", "micro-batch x accumulation", "full",
    "images/s", "range", "cores",
)  # fmt: skip


def plan_systems(name: str, plan_of: Callable[[str, int], IpuPlan]) -> Tuple[str, bool]:
    """Return a table with one line for each of SYSTEM_SIZES, and whether the experiment fits all of them.

    Args:
        name: of the experiment.
        plan_of: (system, ipus) -> its plan there. A ValueError of it is shown in its line.
    """
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    fit = True
    for system, ipus in SYSTEM_SIZES:
        try:
            plan = plan_of(system, ipus)
            refusal = "" if plan.fits else plan.refusals[0]
        except ValueError as error:
            refusal = str(error)
        fit = fit and not refusal
        cells = f"refused: {refusal}" if refusal else _cells(plan)
        lines.append(f"| {name} | {system}, {ipus} | {cells} |")
    return "\n".join(lines), fit


def _cells(plan: IpuPlan) -> str:
    execution = plan.execution
    low, high = plan.images_per_second_range
    full = f"{plan.full:.0%}" if plan.has_margin else f"{plan.full:.0%}, narrow"
    return (
        f"{execution.replicas} | {execution.ipus_per_replica} | {execution.micro_batch_size} x "
        f"{execution.gradient_accumulation} | {full} | {plan.images_per_second:,.0f} | {low:,.0f}-{high:,.0f} | "
        f"{decoding_cores(plan.images_per_second)}"
    )
