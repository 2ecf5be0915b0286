"""Whole files, read only where they are files and no larger than their reader expects: judged before a byte is read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Union

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
MAX_LOG_BYTES = 256 * MIB  # of metrics.jsonl or power.jsonl: a million records


def read_bounded(path: Union[str, Path], most: int) -> bytes:
    """Return the content of a file of at most `most` bytes.

    A hole of a sparse file counts as what it reads as. A pipe or a device is none: it may be without end.

    Raises:
        OSError: a file that cannot be read, that is larger, or that is not a regular file.
    """
    # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    descriptor = os.open(str(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file (a pipe, a socket or a device)", str(path))
        if found.st_size > most:
            raise OSError(
                errno.EFBIG, f"it has {found.st_size:,} bytes, over the limit of {most:,} for such a file", str(path)
            )
        # Not what others have added since; and not read(most), which asks for that much memory first.
        return file.read(found.st_size)
