"""Facts and settings of the host's memory."""

import ctypes
import os
import sys
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # names of glibc's malloc.h
_MFD_CLOEXEC = 1  # of Linux's sys/mman.h
_LARGEST_INT = 2**31 - 1
_OLD_GLIBC_LIMIT = 32 * 2**20  # glibc before 2.35 refuses a larger mmap threshold


def keep_freed_memory() -> bool:
    """Make glibc's malloc keep freed blocks for the next step instead of returning them to the system.

    By default each large activation is a fresh mapping whose pages fault in one by one; with this BN + ReLU on 49 MB
    runs several times faster on a CPU. Returns whether it applied (Linux with glibc only).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc: nothing to set
        return False
    raised = mallopt(_M_MMAP_THRESHOLD, _LARGEST_INT) or mallopt(_M_MMAP_THRESHOLD, _OLD_GLIBC_LIMIT)
    return bool(raised) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT))


def open_memory_file(name: str) -> int:
    """Open an empty file in memory that is in no folder.

    Python's own os.memfd_create is missing where Python was built for older systems (conda's, uv's).

    Args:
        name: for the lists of /proc.

    Raises:
        OSError: it cannot be had.
    """
    system = ctypes.CDLL(None, use_errno=True)
    if not hasattr(system, "memfd_create"):
        raise OSError("this system has no memfd_create")
    file: int = system.memfd_create(name.encode(), _MFD_CLOEXEC)
    if file < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return file


def available_bytes() -> int:
    """Return bytes of main memory that new work can use now."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    return min(available, _container_bytes())


def _container_bytes() -> int:
    """Return what a container's limit (cgroup version 2) leaves; very much where there is none."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit, used = (folder / "memory.max").read_text(), (folder / "memory.current").read_text()
        return max(0, int(limit) - int(used))
    except (OSError, ValueError):  # no such files, or the limit "max"
        return sys.maxsize
