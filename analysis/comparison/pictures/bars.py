"""Bars of all rows with intervals and single seeds, a panel for each column of a grid, as the paper's Figure 4."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.comparison.bootstrap import Interval
from analysis.comparison.compare import Comparison, Summary
from analysis.comparison.pictures.picture import LINES, Picture


def bars_picture(comparison: Comparison) -> Picture:
    """Horizontal bars from 0: lengths can be compared. A row without a mean has no bar, and its name says so."""

    def draw(figure: Figure) -> None:
        columns = comparison.columns
        counts = [len(comparison.of_column(column)) for column in columns]
        figure.set_size_inches(7.5, 0.9 + sum(0.34 * count + 0.55 for count in counts))
        panels = figure.subplots(len(columns), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": counts})
        for axes, column in zip(panels[:, 0], columns):
            _draw(axes, comparison, column)
        panels[-1, 0].set_xlim(left=0)  # last: it ends the growth of the axis that all panels share
        panels[-1, 0].set_xlabel(comparison.metric.label)
        figure.suptitle(f"{comparison.metric.label}, mean over seeds", fontsize=11)

    values = "; ".join(f"{summary.row.title} {value_text(comparison, summary)}" for summary in comparison.summaries)
    return Picture(
        name="bars",
        title=f"{comparison.metric.label} of all rows",
        caption=(
            f"Bars: mean over seeds. Whiskers: {INTERVAL_WORDS}. Dots: single seeds. Whiskers are of each row alone; "
            "whether two rows differ is in the table of paired differences."
        ),
        alt=f"Bar chart of {comparison.metric.label}: {values}.",
        draw=draw,
    )


INTERVAL_WORDS = "95 % BCa bootstrap interval of the mean over seeds, none with fewer than three"


def value_text(comparison: Comparison, summary: Summary) -> str:
    """Return a row's mean with its interval, in words for alternative texts."""
    metric = comparison.metric
    if summary.mean is None:
        return "has no mean"
    if summary.interval.reason:
        return metric.text(summary.mean)
    return f"{metric.text(summary.mean)} ({metric.text(summary.interval.low)} to {metric.text(summary.interval.high)})"


def whiskers(mean: float, interval: Interval) -> "list[list[float]]":
    """Distances to an interval's ends, as matplotlib wants them; a mean may lie outside by rounding."""
    if interval.low is None or interval.high is None:
        return [[0.0], [0.0]]
    return [[max(0.0, mean - interval.low)], [max(0.0, interval.high - mean)]]


def _draw(axes: Axes, comparison: Comparison, column: str) -> None:
    names, ink = [], axes.xaxis.label.get_color()
    for place, summary in enumerate(comparison.of_column(column)):
        mean, values = summary.mean, list(summary.by_seed.values())
        names.append(summary.row.name if mean is not None else f"{summary.row.name} (no mean)")
        if mean is not None:
            axes.barh(place, mean, height=0.66, color=LINES[5]["color"], alpha=0.75)
            if not summary.interval.reason:
                axes.errorbar(mean, place, xerr=whiskers(mean, summary.interval), color=ink, capsize=3, linewidth=1.2)
        axes.plot(values, [place + 0.22] * len(values), ".", color=ink, markersize=4)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(True, axis="x", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if column:
        axes.set_title(column, fontsize=9, loc="left")
