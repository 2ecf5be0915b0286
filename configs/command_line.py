"""How every command begins and ends: with streams to write to, and without a traceback at Ctrl-C."""

from __future__ import annotations

import logging
import os
import sys
from typing import Callable, Optional

from configs.exit_codes import DONE, INTERRUPTED, explain, printable
from configs.passwords import hide_passwords
from configs.standard_streams import open_standard_streams


class _Printable(logging.Formatter):
    """Names of files and classes may hold a terminal's commands, and URLs a password."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(hide_passwords(super().format(record)))


def log_to_console(level: int) -> None:
    """Print what is logged from `level` on, as lines of their own; nothing in it commands the terminal."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=level, handlers=[handler])


def run_command(main: Callable[[], Optional[int]]) -> int:
    """Run a command and return its exit code.

    Ctrl-C where nothing else takes it ends it with one line. What was printed and cannot be written, as on a full disk,
    is an error, unless its reader has gone, such as `head`.
    """
    open_standard_streams()
    code = DONE
    try:
        code = main() or DONE
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = INTERRUPTED
    except OSError as error:  # of printing: other ones end in the command itself
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again at its end
        code = code if isinstance(error, BrokenPipeError) else explain(error)
    return code
