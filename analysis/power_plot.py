"""Power plots: P1 to P4 stacked over depth, as in the paper's Figure 2."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, TypeVar, Union

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis.curves import read_records
from configs.picture_file import drawable, plain_texts, save_picture

Item = TypeVar("Item")

# Okabe-Ito colours; neighbours in the stack differ in brightness too.
COLOURS = ("#D55E00", "#F0E442", "#56B4E9", "#0072B2")
MEANINGS = (
    "P1: shared by all images (collapse)",
    "P2: image means differ",
    "P3: variation within an image",
    "P4: image deviations differ",
)
BOUND_LINE: Dict[str, Any] = {"color": "black", "linestyle": "--", "linewidth": 1.2}


@dataclass(frozen=True)
class PowerPanel:
    """One plot.

    Args:
        title: above it.
        powers: (samples, layers, 4), P1 to P4; samples are seeds or checkpoints.
        bound: (layers,), a curve that P1 must stay above, or None.
    """

    title: str
    powers: np.ndarray
    bound: Optional[np.ndarray] = None


@plain_texts()
def plot_power(panels: Sequence[PowerPanel], path: Union[str, Path], *, columns: int = 0, note: str = "") -> None:
    """Save what `draw_power` draws as a picture file."""
    figure = Figure(layout="constrained")
    FigureCanvasAgg(figure)
    draw_power(figure, panels, columns=columns, note=note)
    save_picture(figure, path, dpi=110)


def draw_power(figure: Figure, panels: Sequence[PowerPanel], *, columns: int = 0, note: str = "") -> None:
    """Draw panels in rows of `columns` (0: all in one row), with one legend, on an empty figure, whose size is set.

    The stack is that of the means over samples; the dark band around a boundary is its standard deviation over them.

    Args:
        figure: to draw on.
        panels: one plot each.
        columns: plots in a row.
        note: one line below the plots, e.g. what the samples are.
    """
    columns = columns or len(panels)
    rows = -(-len(panels) // columns)
    figure.set_size_inches(max(4.5, 2.0 * columns + 0.6), 1.9 * rows + 0.9)
    grid = np.atleast_2d(figure.subplots(rows, columns, sharey=True, squeeze=False))
    for index, axes in enumerate(grid.flat):
        if index >= len(panels):
            axes.set_visible(False)
            continue
        _draw(axes, panels[index])
        if index % columns == 0:
            axes.set_ylabel("share of power", fontsize=8)
        if index + columns >= len(panels):
            axes.set_xlabel("norm number (depth)", fontsize=8)
    figure.legend(
        handles=_legend(panels),
        loc="outside upper center",
        ncols=4 if columns >= 4 else 2,
        fontsize=8,
        frameon=False,
    )
    if note:
        width = int(17 * figure.get_size_inches()[0])  # characters of this size in the figure's width
        figure.supxlabel("\n".join(textwrap.wrap(drawable(note), width)), fontsize=7.5, parse_math=False)


def panel_of_layers(title: str, layers: Sequence[Mapping[str, Any]]) -> PowerPanel:
    """Return the panel of one measurement, from the records of a PowerMeter.

    Raises:
        ValueError: they are none.
    """
    powers = np.array([[layer["power"] for layer in layers]], dtype=float)
    if powers.shape != (1, len(layers), 4) or not len(layers):
        raise ValueError(f"powers of shape {powers.shape} are not P1 to P4 of each layer")
    return PowerPanel(title, powers)


def plot_power_log(log_path: Path, out_png: Union[str, Path], title: str = "") -> None:
    """Draw a run's power.jsonl: one panel for each of at most 12 records, the first and the last among them.

    Args:
        log_path: the run's power.jsonl.
        out_png: the picture's file; overwritten.
        title: which run this is, and with which norm.

    Raises:
        ValueError: a file without records, or with a line, other than the last, that is not a record.
    """
    records = read_records(log_path)
    if not records:
        raise ValueError(f"{log_path} holds no record yet; draw it after the run's first one")
    try:
        panels = [panel_of_layers(f"epoch {record['epoch']:g}", record["layers"]) for record in evenly(records, 12)]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{log_path} has a record that is no power decomposition of an epoch: {error}") from error
    plot_power(panels, out_png, columns=min(6, len(panels)), note=title)


def evenly(items: Sequence[Item], most: int) -> List[Item]:
    """Return at most `most` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def _legend(panels: Sequence[PowerPanel]) -> List[Any]:
    """Return what the colours are, and the bands and the dashed line where a panel has them."""
    handles: List[Any] = [Patch(color=colour, label=meaning) for colour, meaning in zip(COLOURS, MEANINGS)]
    if any(len(panel.powers) > 1 for panel in panels):
        handles.append(Patch(color="black", alpha=0.3, linewidth=0, label="bands: standard deviation"))
    if any(panel.bound is not None for panel in panels):
        handles.append(Line2D([], [], **BOUND_LINE, label="Theorem 1: P1 stays above it"))
    return handles


def _draw(axes: Axes, panel: PowerPanel) -> None:
    totals = panel.powers.sum(axis=2, keepdims=True)
    shares = panel.powers / np.where(totals > 0, totals, 1.0)
    depth = np.arange(1, shares.shape[1] + 1)
    heights = np.concatenate([np.zeros((*shares.shape[:2], 1)), shares.cumsum(axis=2)], axis=2)
    mean, spread = heights.mean(axis=0), heights.std(axis=0)
    for part, colour in enumerate(COLOURS):
        axes.fill_between(depth, mean[:, part], mean[:, part + 1], color=colour, linewidth=0)
    for boundary in range(1, 4):
        low, high = mean[:, boundary] - spread[:, boundary], mean[:, boundary] + spread[:, boundary]
        axes.fill_between(depth, low, high, color="black", alpha=0.3, linewidth=0)
    if panel.bound is not None:
        axes.plot(depth, panel.bound, **BOUND_LINE)
    axes.set_title(drawable(panel.title), fontsize=9, parse_math=False)
    axes.set_xlim(1, max(2, len(depth)))
    axes.set_ylim(0, 1)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
