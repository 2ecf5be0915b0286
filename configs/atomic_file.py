"""Files that are either the old ones or the new ones, never half of each, whatever kills the process."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import stat
from pathlib import Path
from typing import Callable, List, Union

# A temporary file is named .<name>.<16 digits>.partial and lies beside the file that it will become.
PARTIAL_SUFFIX = ".partial"
NOT_REGULAR = "it is not a regular file (a pipe, a socket or a device)"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(OSError):
    """No room for a file: names the bytes needed, the bytes there are, and the path. The old file is intact."""

    def __str__(self) -> str:
        return str(self.strerror)  # without the number that OSError puts in front


def replace_file(
    path: Union[str, Path], data: Union[bytes, memoryview], passing: Callable[[str], None] = lambda point: None
) -> None:
    """Write `data` to `path` so that a reader or a crash sees the old content or the new, never a part.

    A temporary file beside it is written and synced, renamed over `path`, and the folder is synced. It must be new, and
    its name is drawn: a link that another user of the folder planted is not written through, and one at `path` is
    replaced, not followed. It is for whom the umask says, as any new file.

    Args:
        path: the file; its folder exists.
        data: the whole content.
        passing: called with "before_write", "mid_write", "before_replace" and "after_replace" when these points are
            reached; crash tests stop the process there.

    Raises:
        DiskFullError: there is no room.
        OSError: other failures, also a pipe or a device at `path`. All leave the old file as it was, and no temporary
            one.
    """
    path = Path(path)
    if not path.name:  # "", "." and "/"
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    partial = path.with_name(f".{path.name}.{os.urandom(8).hex()}{PARTIAL_SUFFIX}")
    view = memoryview(data)
    if is_special(path):
        raise OSError(errno.EINVAL, f"{NOT_REGULAR}, and would be replaced by one; name another", str(path))
    try:
        passing("before_write")
        with os.fdopen(open_without_following(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            file.write(view[: len(view) // 2])
            file.flush()
            passing("mid_write")
            file.write(view[len(view) // 2 :])
            file.flush()
            os.fsync(file.fileno())
        passing("before_replace")
        os.replace(partial, path)
    except BaseException as error:
        # Removed before the free space is measured: the half that was written is room that the next try will have.
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        if not isinstance(error, OSError):
            raise
        if error.errno == errno.EISDIR:  # without the temporary file, which says nothing to a user
            raise IsADirectoryError(errno.EISDIR, "it is a folder, where a file is to be", str(path)) from error
        raise describe_full_disk(error, path, len(view)) from error
    passing("after_replace")
    sync_folder(path.parent)


def replace_text(path: Union[str, Path], text: str) -> None:
    """Write a text as replace_file does, in UTF-8.

    Names of files may be of bytes that are no text; these are written out, as in Python's repr.

    Raises:
        DiskFullError, OSError: as replace_file.
    """
    replace_file(path, text.encode("utf-8", "backslashreplace"))


def is_special(path: Path) -> bool:
    """Whether a path is a pipe, a device or the like, or leads to one: /dev/null is not a file to be replaced."""
    try:
        mode = os.stat(str(path)).st_mode
    except OSError:
        return False  # not there, which is as it should be, or an error that opening tells better
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def partial_files(folder: Path) -> List[Path]:
    """Return what killed writers left in a folder. Another process may be writing one of them right now."""
    return sorted(folder.glob(f".*{PARTIAL_SUFFIX}"))


def open_without_following(path: Path, flags: int) -> int:
    """Return the descriptor of a file, opened without following a link.

    Where others may write to a folder, a link there may lead to a file of this user.

    Args:
        path: the file.
        flags: of os.open; a new file is for whom the umask says.

    Raises:
        OSError: it cannot be opened, or is a symbolic link, a pipe or a device.
    """
    try:
        # Without O_NONBLOCK, opening a pipe that nobody reads would wait for ever.
        descriptor = os.open(str(path), flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            message = "it is a symbolic link, which is not followed; remove it, or choose another folder"
            raise OSError(errno.ELOOP, message, str(path)) from error
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, NOT_REGULAR, str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
    return descriptor


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` survive a loss of power."""
    descriptor = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_full_disk(error: OSError, path: Path, needed: int) -> OSError:
    """Return a DiskFullError with the bytes needed and available if `error` means a full disk, else `error`."""
    if error.errno not in _FULL:
        return error
    available = shutil.disk_usage(path.parent).free
    if error.errno == errno.EFBIG:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        available = available if limit == resource.RLIM_INFINITY else min(available, limit)
        cause = "file size limit"
    else:
        cause = "quota" if error.errno == errno.EDQUOT else "no space left"
    message = f"disk full: need {needed} bytes, have {available} at {path} ({cause}); free space or move the run"
    return DiskFullError(error.errno, message)
