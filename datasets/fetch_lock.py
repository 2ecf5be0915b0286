"""Let one process of several fetch files into a folder, while the others wait for it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Iterator

from configs.atomic_file import open_without_following


@contextlib.contextmanager
def fetch_lock(folder: Path, name: str) -> Iterator[None]:
    """Hold the lock file .NAME.lock of `folder`, which is made where missing; look for the files again once inside.

    The system releases the lock when the process ends, however it ends. Processes of other machines are kept out as
    far as the file system of a shared folder does so.
    """
    import fcntl  # POSIX alone; reading files that are already there works without it

    folder.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_without_following(folder / f".{name}.lock", os.O_RDWR | os.O_CREAT), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
