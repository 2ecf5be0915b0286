"""Processes that do not outlive the one that started them, even where that is killed."""

from __future__ import annotations

import ctypes
import os
import signal

_SIGNAL_AT_PARENTS_END = 1  # PR_SET_PDEATHSIG of Linux's prctl


def end_with(parent: int, number: int = signal.SIGKILL) -> None:
    """Have this process, which is starting, get the signal `number` as soon as `parent` ends."""
    system = ctypes.CDLL(None)
    if hasattr(system, "prctl"):
        system.prctl(_SIGNAL_AT_PARENTS_END, number)
    if os.getppid() != parent:  # it ended before
        os._exit(1)
