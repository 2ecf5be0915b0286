"""Pictures as files that are whole at every moment, and with names in them as they are."""

from __future__ import annotations

import contextlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Iterator, Union

from configs.atomic_file import replace_file
from configs.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp", ".eps", ".ps", ".tif", ".tiff")


@contextlib.contextmanager
def plain_texts() -> Iterator[None]:
    """Inside, and around a function that draws and saves, texts are drawn as they are.

    Names of classes and files are anyone's. matplotlib takes what stands between two $ in them for a formula, and one
    that it cannot read for an error.
    """
    import matplotlib  # takes long to import, and commands that draw nothing start without

    with matplotlib.rc_context({"text.parse_math": False}):
        yield


def drawable(text: str) -> str:
    """Return a text that can be drawn: bytes of a name that are no text are written out."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def check_picture(path: Union[str, Path]) -> None:
    """Refuse the name of a picture in a format that none can be written in: before the work of hours, not after it.

    Raises:
        ConfigError: as said.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path} is no name of a picture; let it end in {', '.join(SUFFIXES)}")


def save_picture(figure: Figure, path: Union[str, Path], dpi: int) -> None:
    """Write a figure, in the format that the path's suffix names.

    Raises:
        OSError: it cannot be written.
        ConfigError: an unknown suffix.
    """
    check_picture(path)
    content = BytesIO()
    figure.savefig(content, dpi=dpi, format=Path(path).suffix.lower().lstrip("."))
    replace_file(path, content.getvalue())
