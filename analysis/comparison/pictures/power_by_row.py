"""P1 to P4 over depth at the last measured epoch, a panel for each row."""

from __future__ import annotations

import textwrap
from typing import List, Sequence

import numpy as np
from matplotlib.figure import Figure

from analysis.comparison.pictures.picture import Picture
from analysis.comparison.rows import Row
from analysis.power_plot import PowerPanel, draw_power


def power_picture(rows: Sequence[Row]) -> Picture:
    """Panels of the rows whose runs all have a power record, of the same layers."""
    panels = [panel for row in rows for panel in _panel(row)]
    columns = min(4, len(panels))

    def draw(figure: Figure) -> None:
        draw_power(figure, panels, columns=columns, note="norms in order of depth; dark: sd over seeds")

    words = "; ".join(
        f"{' '.join(panel.title.split())}: P1 mean {panel.powers[:, :, 0].mean():.3f}, "
        f"largest {panel.powers[:, :, 0].mean(axis=0).max():.3f}"
        for panel in panels
    )
    return Picture(
        name="power",
        title="Power decomposition at the last epoch",
        caption=(
            "Shares of P1 to P4 at each norm on evaluation images, mean over seeds; the dark band around a boundary is "
            "its standard deviation over seeds. Batch norm is in evaluation form."
        ),
        alt=f"Power plots. {words}.",
        draw=draw,
    )


def rows_with_power(rows: Sequence[Row]) -> List[Row]:
    """Those that the picture shows."""
    return [row for row in rows if _panel(row)]


def _panel(row: Row) -> List[PowerPanel]:
    layers = [tuple(layer["name"] for layer in run.power) for run in row.runs]
    if not layers[0] or len(set(layers)) > 1:
        return []
    powers = np.array([[layer["power"] for layer in run.power] for run in row.runs])
    return [PowerPanel("\n".join(textwrap.wrap(row.title, 26)), powers)]
