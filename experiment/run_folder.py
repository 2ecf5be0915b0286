"""The folder that a run writes: who may write to it, and what is in it already."""

from __future__ import annotations

import datetime
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO, Optional

from configs.atomic_file import open_without_following
from configs.errors import ConfigError
from configs.exit_codes import REFUSED, ExplainedError
from configs.output_place import check_file_name, try_to_write

LOCK_NAME = "run.lock"
_HOLDER_CHARACTERS = 200  # pid, machine and start


class RunFolderError(ExplainedError, OSError):
    """The output folder cannot be used. The message says why and what to do."""

    exit_code = REFUSED


class RunFolderGoneError(OSError):
    """The output folder is no longer the one that the run began with."""


class RunFolder:
    """The names in a run's folder, and its lock.

    The lock is the operating system's (flock) on `run.lock`, so that it ends with its process, however that dies; the
    file's text tells users who holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.metrics = path / "metrics.jsonl"
        self.power = path / "power.jsonl"
        self.summary = path / "summary.json"
        self.status = path / "status.json"
        self.checkpoints = path / "checkpoints"
        self.curves = path / "curves.png"
        self.csv = path / "metrics.csv"
        self.tensorboard = path / "tensorboard"
        self.power_plot = path / "power.png"
        self._lock: Optional[IO[str]] = None

    def acquire(self, resume: bool) -> None:
        """Make the folder and take its lock.

        Raises:
            RunFolderError: it cannot be written, another run holds it, or it holds a run and `resume` is false.
        """
        _check_writable(self.path)
        self._check_names()
        self._lock = _lock(self.path)
        if not resume and (self.metrics.exists() or any(self.checkpoints.glob("step_*"))):
            self.release()
            raise RunFolderError(
                f"{self.path} already holds a run; continue it with --resume, or choose another --output-dir"
            )

    def _check_names(self) -> None:
        """Refuse names of this folder that hold something else: some are written after the last step only."""
        files = (self.config, self.metrics, self.power, self.summary, self.status, self.csv)
        try:
            for path in (*files, self.curves, self.power_plot):
                check_file_name(path)
        except ConfigError as error:
            raise RunFolderError(
                f"{error}; a run writes it: remove what is there, or choose another run folder"
            ) from error
        for path in (self.checkpoints, self.tensorboard):
            if os.path.lexists(path) and not path.is_dir():
                raise RunFolderError(
                    f"{path} is no folder, and a run makes one of this name; remove it, or choose another --output-dir"
                )

    def check_there(self) -> None:
        """Check that the folder is still the one that was written to before.

        Raises:
            RunFolderGoneError: the folder was deleted, renamed or unmounted, or another stands in its place.
        """
        if self._lock is None:
            return
        own = os.fstat(self._lock.fileno())
        try:
            there = os.stat(self.path / LOCK_NAME)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino):
            raise RunFolderGoneError(
                f"the run folder {self.path} is gone: it was deleted, renamed or unmounted while the run wrote to it; "
                "put it back and continue with --resume, or start again"
            )

    def inherit(self) -> bool:
        """Take the lock of a process of this run that ended, or is about to. False where there is none to take."""
        for _ in range(100):
            if not (self.path / LOCK_NAME).exists():
                return False
            try:
                self._lock = _lock(self.path)
                return True
            except RunFolderError:
                time.sleep(0.1)
        return False

    def release(self) -> None:
        """Let another run use the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _check_writable(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        try_to_write(path)
    except OSError as error:
        raise RunFolderError(
            f"cannot write to the output folder {path}: {error.strerror}; choose another --output-dir"
        ) from error


def _lock(path: Path) -> IO[str]:
    try:
        descriptor = open_without_following(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    except OSError as error:
        raise RunFolderError(f"{path / LOCK_NAME} cannot be opened: {error.strerror}") from error
    lock = os.fdopen(descriptor, "a+", encoding="utf-8", errors="replace")  # open for as long as the lock is held
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read(_HOLDER_CHARACTERS).strip()
        lock.close()
        known = holder if holder and holder.isprintable() else "another run"
        raise RunFolderError(f"{path} is in use by {known}; wait for it, or choose another --output-dir") from error
    except OSError as error:  # a file system without locks, perhaps
        lock.close()
        raise RunFolderError(f"{path / LOCK_NAME} cannot be locked: {error.strerror}; choose another folder") from error
    lock.truncate(0)
    started = datetime.datetime.now().isoformat(timespec="seconds")
    lock.write(f"pid {os.getpid()} on {socket.gethostname()}, started {started}\n")
    lock.flush()
    return lock
