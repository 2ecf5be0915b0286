"""Loss and accuracy of a run against epochs, as one picture."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any, Dict, List, Sequence, Union

from configs.bounded_file import MAX_LOG_BYTES, parse_json, read_bounded
from configs.picture_file import drawable, save_picture

# Colours of the Okabe-Ito palette, which stay apart for colour-blind readers; markers tell them apart in grey.
_SPLITS = {
    "train": {"color": "#0072B2", "linewidth": 1.2, "marker": ".", "markersize": 3, "label": "training"},
    "validation": {"color": "#009E73", "linewidth": 1.4, "marker": "s", "markersize": 4, "label": "validation"},
    "eval": {"color": "#D55E00", "linewidth": 1.8, "marker": "o", "markersize": 4, "label": "evaluation"},
}


def plot_curves(metrics_path: Union[str, Path], out_png: Union[str, Path], title: str = "") -> None:
    """Draw a run's metrics.jsonl against epochs: loss, and top-1 accuracy in percent, of each split that it has.

    A value that was not finite (null in the file) leaves a gap. A torn last line, as a running or killed run leaves it,
    is skipped.

    Args:
        metrics_path: one JSON record a line, with split, epoch, loss and top1.
        out_png: the picture's file; overwritten.
        title: which run this is, and with which norm.

    Raises:
        ValueError: a file without records, or with a line, other than the last, that is not a record.
    """
    records = read_records(Path(metrics_path), numbers=("epoch", "loss", "top1"))
    if not records:
        raise ValueError(f"{metrics_path} holds no record yet; draw it after the run's first log line")
    # it takes long to import, and commands that draw nothing start without
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for split, line in _SPLITS.items():
        rows = [record for record in records if record["split"] == split]
        if not rows:
            continue
        epochs = [_or_gap(row["epoch"]) for row in rows]
        loss_axes.plot(epochs, [_or_gap(row["loss"]) for row in rows], **line)
        accuracy_axes.plot(epochs, [100 * _or_gap(row["top1"]) for row in rows], **line)
    loss_axes.set_ylabel("loss per image")
    accuracy_axes.set_ylabel("top-1 accuracy (%)")
    for axes in (loss_axes, accuracy_axes):
        axes.set_xlabel("epoch")
        axes.grid(True, color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    if title:
        figure.suptitle("\n".join(textwrap.wrap(drawable(title), 110)), fontsize=11, parse_math=False)
    save_picture(figure, out_png, dpi=150)


def read_records(path: Path, numbers: Sequence[str] = ()) -> List[Dict[str, Any]]:
    """Return the JSON records of a run's file, one per line; a torn last line is skipped.

    Args:
        path: of the file.
        numbers: keys that each record has, beside its split: numbers, or null where they were not finite.

    Raises:
        ValueError: another line that is not a record.
    """
    lines = read_bounded(path, MAX_LOG_BYTES).splitlines()
    records: List[Dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line)
            if not isinstance(record, dict) or (numbers and "split" not in record):
                raise ValueError("no object with a split")
            for key in numbers:
                _or_gap(record[key])
            records.append(record)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number} is not a metrics record: {line[:80]!r}") from error
    return records


def _or_gap(value: Any) -> float:
    return math.nan if value is None else float(value)
