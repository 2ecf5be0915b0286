"""The report page, from its template page.html.j2. Everything that comes from runs is escaped: names are anyone's."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from analysis.comparison.compare import notes_of
from analysis.comparison.pictures.picture import DARK, LIGHT, Picture, Theme
from analysis.comparison.rows import Row
from analysis.comparison.tables import Table, tables_of
from analysis.comparison.written import Answer
from analysis.settings import differing_settings, setting_text
from configs.atomic_file import replace_text

_FOLDER = Path(__file__).resolve().parent
_OF_RUNS = "run."  # seeds and what is written: they change no result but by the seed, which the table of runs has


@dataclass(frozen=True)
class Figure:
    """A picture on light and on dark ground, each as the address that holds it."""

    picture: Picture
    light: str
    dark: str


def write_page(path: Path, title: str, answer: Answer) -> Path:
    """Write the page atomically, its folder too; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, render_page(title, answer))
    return path


def render_page(title: str, answer: Answer) -> str:
    """Return the page as HTML: settings that differ, tables with their notes, pictures, speed, all runs."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = answer.rows
    return environment.get_template("page.html.j2").render(
        title=title,
        runs=sum(len(row.runs) for row in rows),
        rows=len(rows),
        seeds=sorted({run.seed for row in rows for run in row.runs}),
        settings=settings_table(rows),
        shared=shared_settings(rows),
        comparisons=[(each.metric.label, tables_of(each), notes_of(each)) for each in answer.comparisons],
        figures=[Figure(each, _address(each, LIGHT), _address(each, DARK)) for each in answer.pictures.values()],
        speed=speed_table(rows),
        all_runs=runs_table(rows),
    )


def settings_table(rows: Sequence[Row]) -> Table:
    """Return the settings in which rows differ. Where a row's own runs differ, its cell has all their values."""
    keys = [key for key in _differing(rows) if not key.startswith(_OF_RUNS)]
    cells = [
        (key, *(", ".join(dict.fromkeys(setting_text(run.settings.get(key)) for run in row.runs)) for row in rows))
        for key in keys
    ]
    return Table("", ("setting", *(row.title for row in rows)), tuple(cells))


def shared_settings(rows: Sequence[Row]) -> List[Tuple[str, str]]:
    """Return the settings that all runs have in common."""
    differing, settings = _differing(rows), rows[0].runs[0].settings
    shared = [key for key in settings if key not in differing and not key.startswith(_OF_RUNS)]
    return [(key, setting_text(settings[key])) for key in shared]


def speed_table(rows: Sequence[Row]) -> Table:
    """Return images per second of training as the runs logged it; without rows where none did."""
    cells = []
    for row in rows:
        speeds = [run.figures["images_per_second"] for run in row.runs if run.figures.get("images_per_second")]
        if speeds:
            values = np.array(speeds, dtype=np.float64)
            spread = f"{values.min():,.0f} to {values.max():,.0f}"
            cells.append(
                (row.title, f"{values.mean():,.0f}", spread, str(len(values)), _joined(row, "machine", "device"))
            )
    return Table("", ("", "images/s, mean", "least to greatest", "runs", "machine"), tuple(cells))


def runs_table(rows: Sequence[Row]) -> Table:
    """Return one line for each run: its figures, where it is, and what made it."""
    cells = [
        (
            row.title,
            str(run.seed),
            "loss not finite" if run.diverged else f"{100 * (run.figures['top1'] or 0):.2f}",
            str(run.source),
            ", ".join(f"{key} {value}" for key, value in run.origin.items()),
        )
        for row in rows
        for run in row.runs
    ]
    return Table("", ("row", "seed", "test top-1 (%)", "read from", "made with"), tuple(cells))


def _differing(rows: Sequence[Row]) -> List[str]:
    return differing_settings([run.settings for row in rows for run in row.runs])


def _joined(row: Row, *keys: str) -> str:
    """Return what the runs of a row say of the first of `keys` that they have."""
    for key in keys:
        values: Dict[str, None] = dict.fromkeys(run.origin[key] for run in row.runs if key in run.origin)
        if values:
            return ", ".join(values)
    return "not recorded"


def _address(picture: Picture, theme: Theme) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.svg(theme)).decode('ascii')}"
