"""A figure against a setting, as error against normalization batch: lines of rows that differ in it, others level."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional, Tuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.comparison.compare import Comparison, Summary
from analysis.comparison.pictures.bars import INTERVAL_WORDS, value_text, whiskers
from analysis.comparison.pictures.picture import LINES, Picture, tidy
from analysis.results_file import ResultsError
from analysis.settings import norm_of

_LEGEND = "means over seeds; whiskers\nand bands: 95 % intervals"
_WORDS = {"batch.norm_batch_size": "normalization batch (images)"}


@dataclass(frozen=True)
class Series:
    """Rows of one norm: `points` by the setting's value where they differ in it, else a `level`, the same for all."""

    label: str
    points: Tuple[Tuple[float, Summary], ...]

    @property
    def is_level(self) -> bool:
        return len(self.points) == 1


def series_of(comparison: Comparison, key: str) -> List[Series]:
    """Lines and levels. Rows of one norm and column with different values of `key` form a line; any other row a level.

    Raises:
        ResultsError: no two rows differ in `key`, or it is not a number.
    """
    groups: Dict[Tuple[str, str], List[Tuple[float, Summary]]] = {}
    for summary in comparison.summaries:
        value = summary.row.setting(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ResultsError(f"--x {key}: {summary.row.title} has {value!r}; numbers can be drawn")
        group = (norm_of(summary.row.runs[0].settings), summary.row.column)
        groups.setdefault(group, []).append((float(value), summary))
    series: List[Series] = []
    for (norm, column), points in groups.items():
        if len({value for value, _ in points}) == len(points) > 1:
            label = f"{norm}, {column}" if column else norm
            series.append(Series(label, tuple(sorted(points, key=lambda point: point[0]))))
        else:
            alone = len(points) == 1 and not column
            series += [Series(norm if alone else summary.row.title, ((value, summary),)) for value, summary in points]
    if all(each.is_level for each in series):
        raise ResultsError(f"--x {key}: no rows of one norm differ in it, so there is no line to draw")
    return series


def against_setting_picture(comparison: Comparison, reestimated: Optional[Comparison], key: str) -> Picture:
    """Return the picture of a figure against a setting.

    Args:
        comparison: the rows by one figure.
        reestimated: the same figure with batch norm's statistics re-estimated, which gives further lines where rows
            have it; None for none.
        key: of the setting.
    """
    drawn = series_of(comparison, key)
    for each in series_of(reestimated, key) if reestimated is not None else ():
        if not each.is_level and norm_of(each.points[0][1].row.runs[0].settings).startswith("BN"):
            drawn.append(replace(each, label=f"{each.label}, statistics re-estimated"))
    lines, levels = [each for each in drawn if not each.is_level], [each for each in drawn if each.is_level]
    metric, words = comparison.metric, _WORDS.get(key, key)

    def draw(figure: Figure) -> None:
        figure.set_size_inches(8.6, 4.2)
        axes = figure.subplots()
        for place, series in enumerate(lines):
            _draw_line(axes, series, LINES[place % len(LINES)], 1.05 ** (place - (len(lines) - 1) / 2))
        for place, series in enumerate(levels, start=len(lines)):
            _draw_level(axes, series, LINES[place % len(LINES)])
        ticks = sorted({value for series in lines for value, _ in series.points})
        if ticks[0] > 0:
            axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(words)
        axes.set_ylabel(metric.label)
        axes.set_title(f"{metric.label} against {words}", fontsize=11)
        # Beside the axes, so that it covers no line or band.
        beside: Dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.0}
        axes.legend(fontsize=8, frameon=False, title=_LEGEND, title_fontsize=7.5, alignment="left", **beside)
        tidy(axes)

    alt = "; ".join(f"{series.label}: {_values(comparison, series)}" for series in lines + levels)
    return Picture(
        name=key.rpartition(".")[2],
        title=f"{metric.label} against {words}",
        caption=(
            f"Points and level lines: mean over seeds. Whiskers and bands: {INTERVAL_WORDS}. A level line is one row, "
            "drawn across for comparison. Points of several lines are moved apart sideways to be seen."
        ),
        alt=f"{metric.label} against {words}. {alt}.",
        draw=draw,
    )


def _values(comparison: Comparison, series: Series) -> str:
    if series.is_level:
        return value_text(comparison, series.points[0][1])
    return ", ".join(f"{value:g}: {value_text(comparison, summary)}" for value, summary in series.points)


def _draw_line(axes: Axes, series: Series, line: Dict[str, Any], shift: float) -> None:
    points = [(shift * value, summary, summary.mean) for value, summary in series.points if summary.mean is not None]
    axes.plot([value for value, _, _ in points], [mean for _, _, mean in points], **line, label=series.label)
    for value, summary, mean in points:
        axes.errorbar(value, mean, yerr=whiskers(mean, summary.interval), color=line["color"], capsize=3)


def _draw_level(axes: Axes, series: Series, line: Dict[str, Any]) -> None:
    ((_, summary),) = series.points
    if summary.mean is None:
        return
    style = {"color": line["color"], "linestyle": line["linestyle"], "linewidth": 1.4}
    axes.axhline(summary.mean, **style, label=f"{series.label} (drawn across)")
    if summary.interval.low is not None and summary.interval.high is not None:
        axes.axhspan(summary.interval.low, summary.interval.high, color=line["color"], alpha=0.15, linewidth=0)
