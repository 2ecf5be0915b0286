"""How the process of a command ends: with its exit code, whatever threads torch has left."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import threading
from typing import Callable, NoReturn

from backends.process_group import was_joined
from configs.command_line import run_command
from configs.exit_codes import FAILED


def end_with(main: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with its exit code, 1 after an error that is none of the user's.

    A process that has been in a group of processes does all that Python does at its end but the last: the interpreter
    is not taken apart. A group that could not be left whole, as in an error's traceback, has threads that may need it.
    """
    try:
        code = run_command(main)
    except BaseException as error:
        if not was_joined():
            raise
        code = _show(error)
    if was_joined():
        _leave(code)
    sys.exit(code)


def _show(error: BaseException) -> int:
    """Print what Python prints about an unhandled error, and return its exit code."""
    if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
        return error.code or 0
    if isinstance(error, SystemExit):
        print(error.code, file=sys.stderr)
        return FAILED
    sys.excepthook(type(error), error, error.__traceback__)
    return FAILED


def _leave(code: int) -> NoReturn:
    try:  # the same, in the same order, as in the end of a process of multiprocessing
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, those of executors too
        atexit._run_exitfuncs()  # logging, loading processes, temporary folders, wandb
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with contextlib.suppress(OSError, ValueError):  # closed: nobody reads it
                    stream.flush()
        ctypes.CDLL(None).fflush(None)  # what libraries wrote
        os._exit(code)
