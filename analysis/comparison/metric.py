"""The figures that runs are compared by: where each is found, its name in a table and its unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Optional

from analysis.comparison.run_result import RunResult


@dataclass(frozen=True)
class Metric:
    """One figure of a run.

    Args:
        label: with its unit in parentheses, where it has one.
        figure: its name in a RunResult.
        scale, offset: the value shown is offset + scale * figure.
        difference_unit: of differences, "" for none.
        digits: after the point.
    """

    label: str
    figure: str
    scale: float = 1.0
    offset: float = 0.0
    difference_unit: str = ""
    digits: int = 4

    def of(self, run: RunResult) -> Optional[float]:
        """Return the run's value; None where it has none, or none that is finite.

        Only batch norm has statistics to re-estimate; for any other norm the figure is what it is without.
        """
        name = self.figure
        if name.startswith("reestimated_") and not str(run.settings.get("norm.name")).startswith("batch"):
            name = name[len("reestimated_") :]
        figure = run.figures.get(name)
        return None if figure is None else self.offset + self.scale * figure

    def text(self, value: Optional[float], sign: bool = False) -> str:
        """Return a value, or a difference with its sign."""
        return "–" if value is None else f"{value:{'+' if sign else ''}.{self.digits}f}"  # noqa: RUF001  an en dash


def _accuracy(label: str, figure: str) -> Metric:
    return Metric(f"{label} (%)", figure, scale=100.0, difference_unit="points", digits=2)


def _error(label: str, figure: str) -> Metric:
    return Metric(f"{label} (%)", figure, scale=-100.0, offset=100.0, difference_unit="points", digits=2)


METRICS: Dict[str, Metric] = {
    "top1": _accuracy("test top-1", "top1"),
    "error": _error("test error", "top1"),
    "loss": Metric("test loss", "loss"),
    "train_top1": _accuracy("training top-1", "train_top1"),
    "train_loss": Metric("training loss", "train_loss"),
    "reestimated_top1": _accuracy("test top-1 with BN statistics re-estimated", "reestimated_top1"),
    "reestimated_error": _error("test error with BN statistics re-estimated", "reestimated_top1"),
    "reestimated_loss": Metric("test loss with BN statistics re-estimated", "reestimated_loss"),
}
# Figures of which a picture shows the error, because its axis begins at 0.
ERROR_OF: Dict[str, str] = {"top1": "error", "reestimated_top1": "reestimated_error"}
