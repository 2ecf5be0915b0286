"""The names of classes: one a line in a file, one folder each; all of them different to the eye."""

from __future__ import annotations

import codecs
import os
import unicodedata
from typing import Dict, Iterable, Tuple

from datasets.errors import DataError

LINE_BREAKS = "\n\r"


def parse_class_names(path: str, content: bytes) -> Tuple[str, ...]:
    """Return the names that a file gives, one a line; empty lines at its end count for nothing.

    Args:
        path: the file's name in messages.
        content: of the file.

    Raises:
        DataError: an empty line before the end, which would shift all labels behind it; names that cannot be told
            apart; a file that is not text.
    """
    if b"\0" in content:
        raise DataError(f"{path}: not UTF-8 text with one class name per line: it begins with {content[:8]!r}")
    lines = content.replace(b"\r\n", b"\n").rstrip(b"\n").split(b"\n")
    names = tuple(os.fsdecode(line) for line in lines) if any(lines) else ()
    if names and lines[0].startswith(codecs.BOM_UTF8):  # as Windows writes it
        names = (os.fsdecode(lines[0][len(codecs.BOM_UTF8) :]), *names[1:])
    for number, name in enumerate(names):
        if not name.strip():
            raise DataError(
                f"{path}: line {number + 1} is empty, and would be the class of label {number}; remove it, or name "
                "the class"
            )
    check_class_names(path, names)
    return names


def check_class_names(place: str, names: Iterable[str]) -> None:
    """Raise DataError for a name with a line break, or names that look the same: é may be one character or two."""
    seen: Dict[str, str] = {}
    for name in names:
        if any(character in name for character in LINE_BREAKS):
            raise DataError(f"{place}: the class {name!r} has a line break in its name; rename it")
        normal = unicodedata.normalize("NFC", name)
        if normal in seen:
            raise DataError(
                f"{place}: two classes look the same: {name}, written {seen[normal]!a} and {name!a}; rename "
                "or join them"
            )
        seen[normal] = name
