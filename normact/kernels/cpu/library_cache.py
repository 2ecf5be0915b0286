"""Compiled libraries in a cache folder: kept so that a reader finds a whole one of this user's, or none.

A library is code that is about to run here. So it is loaded only where nobody but this user and root can have written
it, and where its bytes have the SHA-256 sum that was written beside it: one that is cut short, zeroed by a crash of
the machine, or planted is as good as none, and is built again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from typing import Callable, Iterator, Optional

SUM_SUFFIX = ".sha256"
SCRATCH_PREFIX = ".build-"
_LOCK_NAME = "lock"
_LOCK_PAUSE_SECONDS = 0.1


class CacheError(OSError):
    """A cache folder that cannot be trusted, or used; the message says why."""


def private_folder(path: Path) -> None:
    """Make a folder that this user alone writes to, with its parents.

    Raises:
        CacheError: another user could have put something there, or could.
        OSError: as said.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if not path.is_symlink() and path.stat().st_uid == os.getuid() and path.stat().st_mode & 0o022:
        path.chmod(0o700)  # an older version left it to the umask
    for folder in (path, *path.resolve().parents):
        found = folder.lstat()
        is_shared_well = folder != path and found.st_mode & stat.S_ISVTX  # as /tmp: nobody renames others' folders
        if not stat.S_ISDIR(found.st_mode) or not _is_ours(found, is_shared_well=bool(is_shared_well)):
            raise CacheError(f"{folder} belongs to another user, or others may write to it")


def trusted_library(library: Path) -> bool:
    """Whether `library`, in a folder made by private_folder, is whole and of this user or root."""
    content, told = _read_own(library), _read_own(sum_path(library))
    return content is not None and told is not None and hashlib.sha256(content).hexdigest() == told.decode().strip()


def is_whole(library: Path) -> bool:
    """Whether `library`, which was installed with this package and is trusted like it, has the sum beside it."""
    try:
        told = sum_path(library).read_text().strip()
        return hashlib.sha256(library.read_bytes()).hexdigest() == told
    except (OSError, UnicodeDecodeError):
        return False


def keep_library(built: Path, library: Path) -> None:
    """Move a built library, and its sum, to where trusted_library finds them, whatever ends the machine meanwhile."""
    written = sum_path(built)
    written.write_text(hashlib.sha256(built.read_bytes()).hexdigest() + "\n")
    for path, target in ((built, library), (written, sum_path(library))):
        path.chmod(0o644 if path is written else 0o755)
        _sync(path)
        os.replace(path, target)
    _sync(library.parent)


@contextlib.contextmanager
def locked(folder: Path, stopped: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a folder. The system drops it when its process dies, so no stale lock can stay.

    Args:
        folder: of the cache.
        stopped: called while waiting; what it raises ends the wait.
    """
    import fcntl  # not there on Windows, where build_library refuses first

    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(str(folder / _LOCK_NAME), flags, 0o600), "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                stopped()
                time.sleep(_LOCK_PAUSE_SECONDS)
        yield


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """Make a temporary folder inside `folder`, whose lock is held; remove those of killed processes first."""
    for stale in folder.glob(f"{SCRATCH_PREFIX}*"):
        shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=folder))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sum_path(library: Path) -> Path:
    """Return the file that holds the sum of a library."""
    return library.with_name(library.name + SUM_SUFFIX)


def _read_own(path: Path) -> Optional[bytes]:
    """Return the content of a regular file that this user or root wrote, and nobody else can; None for any other."""
    try:
        descriptor = os.open(str(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        return file.read() if stat.S_ISREG(found.st_mode) and _is_ours(found) else None


def _is_ours(found: os.stat_result, is_shared_well: bool = False) -> bool:
    if found.st_uid not in (0, os.getuid()):
        return False
    # Many systems give each user a group of the same number, which holds nobody else.
    others = 0o002 if found.st_gid == found.st_uid else 0o022
    return is_shared_well or not found.st_mode & others


def _sync(path: Path) -> None:
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
