"""Pictures as files that are whole at every moment."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Union

from matplotlib.figure import Figure

from configs.atomic_file import replace_file


def save_picture(figure: Figure, path: Union[str, Path], dpi: int) -> None:
    """Write a figure, in the format that the path's suffix names.

    Raises:
        OSError: it cannot be written.
        ValueError: an unknown suffix.
    """
    content = BytesIO()
    figure.savefig(content, dpi=dpi, format=Path(path).suffix.lstrip(".") or "png")
    replace_file(path, content.getvalue())
