"""One runner at a time for a grid's folder; and none while runs of a killed one are still saving."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from typing import Iterator

from configs.atomic_file import open_without_following
from experiment.run_folder import RunFolderError
from grids.console import say

_HOLDER_CHARACTERS = 200  # pid and machine


@contextlib.contextmanager
def grid_lock(folder: Path) -> Iterator[int]:
    """Hold <folder>/grid.lock; yield its descriptor, which runs inherit and so keep locked while they live.

    Raises:
        RunFolderError: another runner holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = open_without_following(folder / "grid.lock", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    except OSError as error:
        raise RunFolderError(f"cannot write to {folder}: {error.strerror}; choose another --out") from error
    with os.fdopen(descriptor, "a+", encoding="utf-8", errors="replace") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            pid, _, host = file.read(_HOLDER_CHARACTERS).strip().partition(" on ")
            if host != socket.gethostname() or _is_alive(pid):
                raise RunFolderError(
                    f"{folder} is in use by the runner with pid {pid} on {host}; wait for it, or choose another --out"
                ) from error
            say(f"waiting for runs of the runner with pid {pid}, which was killed, to save")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield file.fileno()


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):  # none, or no number
        return False
    except PermissionError:
        return True
    return True
