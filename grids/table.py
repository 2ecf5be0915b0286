"""The results of a grid as a Markdown table: mean, standard deviation and number of seeds."""

from __future__ import annotations

import statistics
from typing import Any, Dict, List, Sequence

from grids.plan import Plan, Trial
from grids.results import Results, is_finite


def build_table(plan: Plan, results: Results, figures: Sequence[str]) -> str:
    """Return one line for each cell, one column for each key of summary.json in `figures`."""
    has_columns = any(cell.column is not None for cell in plan.cells)
    head = ["row", *(["column"] if has_columns else []), *figures, "learning rate", "n"]
    lines = [head, ["---"] * len(head)]
    for cell in plan.cells:
        found = [result for result in (results.read(Trial(cell, seed)) for seed in plan.seeds) if result is not None]
        finished = [result["summary"] for result in found if result["summary"] is not None]
        names = [cell.row, *([cell.column or ""] if has_columns else [])]
        rates = sorted({f"{result['learning_rate']['value']:g}" for result in found})
        diverged = len(found) - len(finished)
        count = f"{len(finished)}" + (f", {diverged} diverged" if diverged else "")
        lines.append([*names, *(_cell_text(finished, figure) for figure in figures), " or ".join(rates) or "-", count])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell_text(summaries: List[Dict[str, Any]], figure: str) -> str:
    values = [value for value in (_value(summary, figure) for summary in summaries) if value is not None]
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def _value(summary: Dict[str, Any], figure: str) -> Any:
    """Return what `figure`, such as train.loss, names; None where the summary has no such thing, or no number there."""
    found: Any = summary
    for key in figure.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found if is_finite(found) else None
