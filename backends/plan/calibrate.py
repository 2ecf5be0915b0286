"""The fit behind constants.py, and how well it predicts what it has not seen."""

from __future__ import annotations

import math
from typing import Callable, Dict, List, Sequence

import torch

from backends.plan.hardware import SYSTEMS, find_system
from backends.plan.ipu_plan import IpuPlan, plan_ipu
from backends.plan.measured import PRODUCT_CYCLES, WHOLE_CYCLES, predict_forward_cycles
from backends.plan.memory import stage_memory
from backends.plan.published import CALIBRATION, JUDGED, KNOWN_GOOD, PUBLISHED, Configuration, Published
from backends.plan.stages import cut_stages
from backends.plan.timing import Rates
from backends.plan.trace import Trace

Traces = Callable[[Configuration], Trace]
_ROUNDS = 30  # of Gauss-Newton at most; it settles within ten
_SETTLED, _LONGEST_STEP = 1e-6, 1.0  # of the logarithms
_DIFFERENCE = 1e-4  # of a logarithm, for derivatives


def fit_rates(traces: Traces, rows: Sequence[Published] = CALIBRATION) -> Rates:
    """Return the three constants with the least sum of squares of log(predicted / published) over the calibration rows.

    Args:
        traces: gives the trace of a configuration's network.
        rows: what to fit.
    """
    # In logarithms, so that they stay positive and all errors are relative.
    point = torch.log(torch.tensor([0.5, 5000.0, 0.1], dtype=torch.float64))
    for _ in range(_ROUNDS):
        errors = _log_errors(traces, rows, point)
        shifted = [_log_errors(traces, rows, point + _DIFFERENCE * unit) for unit in torch.eye(3, dtype=torch.float64)]
        slopes = torch.stack([(other - errors) / _DIFFERENCE for other in shifted], dim=1)
        step = -torch.linalg.lstsq(slopes, errors.unsqueeze(1)).solution.squeeze(1)
        if float(step.norm()) < _SETTLED:
            break
        step = step * min(1.0, _LONGEST_STEP / float(step.norm()))
        while _log_errors(traces, rows, point + step).square().sum() > errors.square().sum() and step.norm() > _SETTLED:
            step = step / 2  # the slowest stage may change along the way
        point = point + step
    return _rates(point)


def fit_code_bytes(traces: Traces, known_good: Sequence[Configuration]) -> float:
    """Return the largest code allowance per product, pass and tile with which every known good configuration fits.

    What fits says nothing on how much more would fit, so this is the careful end of what the configurations allow.
    """
    allowances = []
    for configuration in known_good:
        system, execution = find_system(configuration.system), configuration.execution
        for stage in cut_stages(traces(configuration), execution.splits, execution.checkpoints):
            memory = stage_memory(stage, execution, system, code_bytes_per_product=1.0)
            left = system.memory_without(execution.num_io_tiles) - (memory.total - memory.code)
            allowances.append(left / memory.code)
    return min(allowances)


def predict(traces: Traces, row: Published) -> IpuPlan:
    """Return the plan of a published configuration with the calibrated constants."""
    configuration = row.configuration
    return plan_ipu(traces(configuration), configuration.execution, system=configuration.system)


def largest_error(traces: Traces, fitted: Sequence[Published], judged: Sequence[Published]) -> float:
    """predicted / published - 1, the furthest from 0 among the judged rows, with the constants of the fitted ones."""
    rates, errors = fit_rates(traces, fitted), []
    for row in judged:
        configuration = row.configuration
        plan = plan_ipu(traces(configuration), configuration.execution, system=configuration.system, rates=rates)
        errors.append(plan.images_per_second / row.images_per_second - 1)
    return max(errors, key=abs)


def known_fullness(traces: Traces) -> Dict[str, float]:
    """Return, for each configuration known to run, the share of memory that its fullest IPU is estimated to need."""
    running = [row.configuration for row in PUBLISHED] + list(KNOWN_GOOD)
    return {each.name: plan_ipu(traces(each), each.execution, system=each.system).full for each in running}


def format_published(traces: Traces) -> str:
    """Return the published rows (half, published, predicted, error, assumptions), the memory and the profile."""
    lines = [f"{'':44}{'half':>11}{'published':>11}{'predicted':>11}{'error':>8}"]
    notes: Dict[str, int] = {}
    errors: List[float] = []
    for row in PUBLISHED:
        predicted = predict(traces, row).images_per_second
        error = predicted / row.images_per_second - 1
        errors += [error] if row in JUDGED else []
        mark = f" [{notes.setdefault(row.note, len(notes) + 1)}]" if row.note else ""
        half = "judged" if row in JUDGED else "calibrates"
        name = f"{row.configuration.name}{mark}"
        lines.append(f"{name:44}{half:>11}{row.images_per_second:>11,.0f}{predicted:>11,.0f}{error:>+8.1%}")
    lines.append(f"largest error of the judged half: {max(errors, key=abs):+.1%}")
    lines.append(f"with the halves exchanged: {largest_error(traces, JUDGED, CALIBRATION):+.1%}")
    lines += [f"[{number}] {note}" for note, number in notes.items()]
    lines += ["", "configurations that run: what their fullest IPU is estimated to need of its memory"]
    lines += [
        f"{name:44}{full:>11.0%}" for name, full in sorted(known_fullness(traces).items(), key=lambda row: -row[1])
    ]
    return "\n".join([*lines, "", *_profile_lines()])


def _profile_lines() -> List[str]:
    """Return the planner beside a profile of hardware that took no part in the fit (measured.py)."""
    predicted = predict_forward_cycles()
    rates, peak = Rates(), SYSTEMS["c600"].tiles * SYSTEMS["c600"].half_flops_per_cycle / 2
    lines = [
        "cycles of a vision transformer's forward pass on an IPU21, by Poplar 3.4",
        f"{'':44}{'profile':>11}{'predicted':>11}{'error':>8}{'of peak':>9}",
        f"{'whole':44}{WHOLE_CYCLES:>11,}{predicted:>11,.0f}{predicted / WHOLE_CYCLES - 1:>+8.1%}",
    ]
    for name, product in PRODUCT_CYCLES.items():
        cycles = product.multiply_adds / (peak * rates.product_efficiency) + rates.product_overhead_cycles
        error = cycles / product.cycles - 1
        lines.append(f"{name:44}{product.cycles:>11,}{cycles:>11,.0f}{error:>+8.0%}{product.efficiency:>9.0%}")
    return lines + [
        "the profile's products leave out rearranging, exchange and synchronization, which the planner's rate holds:",
        "only the whole can be compared",
    ]


def _rates(point: torch.Tensor) -> Rates:
    return Rates(*(math.exp(value) for value in point.tolist()))


def _log_errors(traces: Traces, rows: Sequence[Published], point: torch.Tensor) -> torch.Tensor:
    errors = []
    for row in rows:
        configuration = row.configuration
        plan = plan_ipu(
            traces(configuration), configuration.execution, system=configuration.system, rates=_rates(point)
        )
        errors.append(math.log(plan.images_per_second / row.images_per_second))
    return torch.tensor(errors, dtype=torch.float64)
