"""Learning curves of all rows over each other, with a band over seeds."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.comparison.metric import METRICS
from analysis.comparison.pictures.picture import LINES, Picture, tidy
from analysis.comparison.rows import Row

Curve = Tuple[np.ndarray, np.ndarray]  # epochs (E,), and values (seeds, E)
_QUANTITIES = {"top1": ("test error (%)", METRICS["error"]), "loss": ("test loss", METRICS["loss"])}


def learning_curves_picture(rows: Sequence[Row]) -> Picture:
    """Test error and loss against epochs: at most six rows in a pair of panels, columns of a grid apart."""
    shown = [row for row in rows if any(len(_curve(row, key)[0]) for key in _QUANTITIES)]
    panels = _panels(shown)

    def draw(figure: Figure) -> None:
        figure.set_size_inches(9, 0.6 + 3.2 * len(panels))
        grid = figure.subplots(len(panels), 2, squeeze=False)
        for pair, (title, members) in zip(grid, panels):
            for axes, (key, (label, _)) in zip(pair, _QUANTITIES.items()):
                for row, line in zip(members, LINES):
                    _draw(axes, row, key, line)
                axes.set_xlabel("epoch")
                axes.set_ylabel(label)
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
                tidy(axes)
            pair[0].set_title(title, fontsize=9, loc="left")
            pair[1].legend(fontsize=7.5, frameon=False)
        figure.suptitle("Learning curves on the test images: mean over seeds, band from least to greatest", fontsize=11)

    return Picture(
        name="curves",
        title="Learning curves",
        caption=(
            "Test error and test loss after each evaluated epoch. Line: mean over seeds. Band: from the least to the "
            "greatest seed, which says nothing about other seeds. A gap: a value that was not finite."
        ),
        alt="Learning curves; at the last epoch " + "; ".join(_last_words(row) for row in shown) + ".",
        draw=draw,
    )


def has_curves(rows: Sequence[Row]) -> bool:
    return any(len(_curve(row, key)[0]) > 1 for row in rows for key in _QUANTITIES)


def _panels(rows: Sequence[Row]) -> List[Tuple[str, List[Row]]]:
    by_column: Dict[str, List[Row]] = {}
    for row in rows:
        by_column.setdefault(row.column, []).append(row)
    return [
        (column, members[first : first + len(LINES)])
        for column, members in by_column.items()
        for first in range(0, len(members), len(LINES))
    ]


def _curve(row: Row, key: str) -> Curve:
    """Return the epochs at which every run of a row was evaluated, and what was measured then."""
    metric = _QUANTITIES[key][1]
    by_run = [{r["epoch"]: r[key] for r in run.records if r["split"] == "eval"} for run in row.runs]
    epochs = sorted(set.intersection(*(set(run) for run in by_run)))
    values = [
        [math.nan if run[epoch] is None else metric.offset + metric.scale * run[epoch] for epoch in epochs]
        for run in by_run
    ]
    return np.array(epochs), np.array(values)


def _draw(axes: Axes, row: Row, key: str, line: Dict[str, Any]) -> None:
    epochs, values = _curve(row, key)
    seeds = f"{len(row.runs)} seed{'s' if len(row.runs) > 1 else ''}"
    axes.plot(epochs, values.mean(axis=0), **line, markersize=4, linewidth=1.6, label=f"{row.name} ({seeds})")
    axes.fill_between(epochs, values.min(axis=0), values.max(axis=0), color=line["color"], alpha=0.2, linewidth=0)


def _last_words(row: Row) -> str:
    epochs, values = _curve(row, "top1")
    return f"{row.title}: test error {values[:, -1].mean():.1f} % (epoch {epochs[-1]:g})"
