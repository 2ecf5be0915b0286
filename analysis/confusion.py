"""Which class was taken for which, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence, Union

import numpy as np

from configs.picture_file import drawable, plain_texts, save_picture

_NAMED = 40  # classes whose names and numbers are still readable


@plain_texts()
def plot_confusion(
    confusion: Sequence[Sequence[int]], class_names: Sequence[str], title: str, out_png: Union[str, Path]
) -> None:
    """Draw a confusion matrix; each row, a true class, adds up to 100 %.

    Args:
        confusion: images of class i that were taken for class j.
        class_names: one per class.
        title: above the picture.
        out_png: the picture's file; overwritten.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names, title = [drawable(name) for name in class_names], drawable(title)
    counts = np.asarray(confusion, dtype=float)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 3 + min(len(counts), _NAMED) * 0.42
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    axes.set(title=title, xlabel="taken for", ylabel="true class")
    if len(counts) <= _NAMED:
        axes.set_xticks(range(len(counts)), names, rotation=60, ha="right")
        axes.set_yticks(range(len(counts)), names)
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.5:
                axes.text(
                    column, row, f"{share:.0f}", ha="center", va="center", fontsize=7, color="w" if share > 60 else "k"
                )
    figure.colorbar(picture, ax=axes, label="% of the true class", shrink=0.7)
    save_picture(figure, out_png, dpi=120)
