"""Files whose writer is not known, and JSON in them.

They are read only where they are files, and no larger than their reader expects: judged before a byte is read.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, Dict, List, Tuple, Union

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MAX_LOG_BYTES = 256 * MIB  # of metrics.jsonl or power.jsonl: a million records
MAX_RECORD_BYTES = MIB  # of summary.json or status.json, which have some hundred
MAX_JSON_DEPTH = 100
_SHOWN = 80  # characters of a name
_TOO_DEEP = f"it is nested more than {MAX_JSON_DEPTH} deep"


def read_bounded(path: Union[str, Path], most: int) -> bytes:
    """Return the content of a file of at most `most` bytes.

    A hole of a sparse file counts as what it reads as. A pipe or a device is none: it may be without end.

    Raises:
        OSError: a file that cannot be read, that is larger, or that is not a regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, over the limit of {most:,} for such a file", str(path))
        # Not what others have added since; and not read(most), which asks for that much memory first.
        return file.read(size)


def open_regular(path: Union[str, Path]) -> BinaryIO:
    """Open a file that is to be read in parts.

    Raises:
        OSError: it cannot be read, or is not a regular file: a pipe or a device.
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    descriptor = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is not a regular file (a pipe, a socket or a device)", str(path))


def parse_json(content: Union[str, bytes], must_differ: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        content: the text.
        must_differ: two entries of the same name in one object are an error; else the last is taken.

    Raises:
        ValueError: another text, or one that is nested so deeply that whoever walks through it may fail.
    """
    try:
        value = json.loads(content, object_pairs_hook=_different if must_differ else None)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    level: List[Any] = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [item for item in level if isinstance(item, (dict, list))]
        if not level:
            return value
        level = [entry for item in level for entry in (item.values() if isinstance(item, dict) else item)]
    raise ValueError(_TOO_DEEP)


def _different(entries: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found: Dict[str, Any] = {}
    for name, value in entries:
        if name in found:
            raise ValueError(f"two of its entries are called {name[:_SHOWN]!r}")
        found[name] = value
    return found
