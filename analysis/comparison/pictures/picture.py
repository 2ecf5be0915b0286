"""A picture with its words, and the colours of the page that it is drawn on."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Tuple
from xml.sax.saxutils import escape

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from analysis.results_file import MAX_BYTES
from configs.atomic_file import replace_file
from configs.bounded_file import read_bounded

# Colours by number, which a theme decides; with marker and dash, so that they can be distinguished in grey too.
LINES: Tuple[Dict[str, Any], ...] = (
    {"color": "C0", "marker": "o", "linestyle": "-"},
    {"color": "C1", "marker": "s", "linestyle": "--"},
    {"color": "C2", "marker": "^", "linestyle": "-."},
    {"color": "C3", "marker": "D", "linestyle": ":"},
    {"color": "C4", "marker": "v", "linestyle": "-"},
    {"color": "C5", "marker": "P", "linestyle": "--"},
)
# Okabe and Ito's, which stay apart for colour-blind readers; on a dark ground the same hues, lighter.
_ON_LIGHT = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_ON_DARK = ("#FF7F32", "#3F9FE0", "#20C997", "#E39AC4", "#F0B93A", "#8FD0F5")


@dataclass(frozen=True)
class Theme:
    """The colours of text, of a grid, of the ground ("none": transparent) and of LINES."""

    ink: str
    faint: str
    ground: str
    lines: Tuple[str, ...]

    @property
    def settings(self) -> Any:
        """For matplotlib.rc_context; text as outlines, so that a picture looks the same everywhere."""
        ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), self.ink)
        grounds = dict.fromkeys(("figure.facecolor", "savefig.facecolor", "axes.facecolor"), self.ground)
        lines = {"axes.prop_cycle": cycler(color=list(self.lines)), "grid.color": self.faint}
        # Names of runs are text, a $ in them too.
        return {**ink, **grounds, **lines, "svg.fonttype": "path", "svg.hashsalt": "picture", "text.parse_math": False}


PAPER = Theme(ink="#222222", faint="#dddddd", ground="white", lines=_ON_LIGHT)
LIGHT = Theme(ink="#222222", faint="#dddddd", ground="none", lines=_ON_LIGHT)
DARK = Theme(ink="#e6e6e6", faint="#454545", ground="none", lines=_ON_DARK)


@dataclass(frozen=True)
class Picture:
    """A picture that is not yet drawn.

    Args:
        name: of its file, without an ending.
        title: above it, for the page.
        caption: what its lines, bars and bands are.
        alt: what it shows in words and numbers, for those who do not see it.
        draw: draws on an empty figure and gives it its size.
    """

    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[Figure], None]

    def svg(self, theme: Theme) -> bytes:
        """Return the same bytes for the same numbers: no date, no random names."""
        with matplotlib.rc_context(theme.settings):
            figure = Figure(layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08))
            FigureCanvasAgg(figure)
            self.draw(figure)
            file = io.BytesIO()
            figure.savefig(file, format="svg", metadata={"Date": None, "Title": self.title, "Description": self.alt})
        return file.getvalue()

    def path_in(self, folder: Path) -> Path:
        return folder / f"{self.name}.svg"

    def save(self, folder: Path) -> Path:
        """Return the picture on white, in a folder that is made."""
        path = self.path_in(folder)
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(path, self.svg(PAPER))
        return path

    def is_saved(self, path: Path) -> bool:
        """Whether `path` is this picture of these numbers.

        Its words, which hold the numbers, decide: outlines of letters and last digits of coordinates may differ between
        machines.
        """
        words = f"<dc:description>{escape(self.alt)}</dc:description>"
        return path.is_file() and words.encode("utf-8") in read_bounded(path, MAX_BYTES)


def tidy(axes: Axes) -> None:
    """Grid behind what is drawn, no frame above and at the right."""
    axes.grid(True, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
