"""Where the data is: data.dir, else $DATA_DIR, else data/."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional

from configs.passwords import hide_passwords
from datasets.errors import DataError


def data_folder(configured: Optional[str]) -> Path:
    """Return the folder of the data; it may not exist yet."""
    return Path(configured or os.environ.get("DATA_DIR") or "data").expanduser()


def where_from(configured: Optional[str]) -> str:
    """Say which setting data_folder took its answer from."""
    if configured:
        return "data.dir"
    return "DATA_DIR" if os.environ.get("DATA_DIR") else "the default; data.dir and DATA_DIR are not set"


def missing_data(name: str, configured: Optional[str], layout: str, reasons: str) -> DataError:
    """Return the error for a data set that is not there.

    Args:
        name: of the data set.
        configured: data.dir.
        layout: the files that the folder must hold.
        reasons: what was found or tried instead.
    """
    # a folder has no meaning for synthetic images, and an option without effect is refused
    no_folder = " --set data.dir=null" if configured else ""
    place = hide_passwords(configured) if configured and "://" in configured else data_folder(configured)
    return DataError(
        f"{name}: no images in {place} ({where_from(configured)})\n"
        f"{reasons}\n"
        f"expected there: {layout}\n"
        "set data.dir or DATA_DIR to the folder that holds them; "
        f"to try the program at once with synthetic images: --set data.name=generated{no_folder}"
    )
