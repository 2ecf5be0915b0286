"""One experiment on the usual systems: how each would execute it, as a table."""

from __future__ import annotations

from typing import Callable, Tuple

from backends.plan.ipu_plan import IpuPlan

PODS: Tuple[Tuple[str, int], ...] = tuple((system, ipus) for system in ("mk1", "mk2") for ipus in (4, 16, 64))
_COLUMNS = (
    "experiment", "ipu.system, ipu.ipus", "--num-replicas", "--ipus-per-replica", "micro-batch x accumulation", "full",
    "images/s",
)  # fmt: skip


def plan_pods(name: str, plan_of: Callable[[str, int], IpuPlan]) -> Tuple[str, bool]:
    """A table with one line for each of PODS, and whether the experiment fits all of them.

    Args:
        name: of the experiment.
        plan_of: (system, ipus) -> its plan there. A ValueError of it is shown in its line.
    """
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    fit = True
    for system, ipus in PODS:
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
    fullest = max(each.memory.total for each in plan.stages) / plan.memory_bytes
    return (
        f"{execution.replicas} | {execution.ipus_per_replica} | {execution.micro_batch_size} x "
        f"{execution.gradient_accumulation} | {fullest:.0%} | {plan.images_per_second:,.0f}"
    )
