"""Where results go: checked before the work of hours, not after it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from configs.atomic_file import NOT_REGULAR, is_special
from configs.errors import ConfigError


def check_output_file(path: Path) -> None:
    """Refuse a name where no file can be written.

    Raises:
        ConfigError: its folder is missing or cannot be written to, or the name is that of a folder, a pipe or a device.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: {path.parent} is not a folder; create it, or name another")
    check_file_name(path)
    _check_writable(path.parent)


def check_output_folder(path: Path) -> None:
    """Refuse a name of a folder that can neither be made nor written to; nothing is made yet.

    Raises:
        ConfigError: something else has the name, or the folder, or the one that it is to be made in, cannot be written
            to.
    """
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise ConfigError(f"{path}: {there} is not a folder; remove it, or name another")
    _check_writable(there)


def check_file_name(path: Path) -> None:
    """Refuse a name that is already that of a folder, a pipe or a device.

    Raises:
        ConfigError: as said.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, where a file is to be")
    if is_special(path):
        raise ConfigError(f"{path}: {NOT_REGULAR}, where a file is to be")


def try_to_write(folder: Path) -> None:
    """Make a file in a folder, of which nothing is left.

    Raises:
        OSError: none can be made.
    """
    with tempfile.TemporaryFile(dir=folder):
        pass


def _check_writable(folder: Path) -> None:
    try:
        try_to_write(folder)
    except OSError as error:
        raise ConfigError(f"cannot write to the folder {folder}: {error.strerror}; name another") from error
