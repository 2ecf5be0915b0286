"""How commands end: the exit codes of all of them, and the errors that end them with one line."""

from __future__ import annotations

import signal
import sys

from configs.passwords import hide_passwords

DONE = 0
FAILED = 1  # a fault of the program, which ends in a traceback; of reproduce.py: some runs failed
REFUSED = 2  # configuration or arguments; argparse's own code, too
DATA = 3
CHECKPOINT = 4
NONFINITE = 5  # loss or gradient
DISK = 74  # the numbers of sysexits.h from here on
PREEMPTED = 75  # asked to stop; what is saved can go on
LOST_PROCESS = 76
INTERRUPTED = 130  # by SIGINT, as shells have it


class ExplainedError(Exception):
    """An error whose message is all that a user needs: what was received, the rule, and what to do.

    Attributes:
        exit_code: of the command that it ends.
    """

    exit_code = REFUSED


# What ends a command with one line instead of a traceback.
EXPLAINED = (ExplainedError, OSError)


def exit_code_of(error: BaseException) -> int:
    """Return the exit code of a command that this error ends."""
    if isinstance(error, ExplainedError):
        return error.exit_code
    return DISK if isinstance(error, OSError) else FAILED


def exit_code_of_signal(number: int) -> int:
    """Return the exit code of a command that saved what it has and stopped because of this signal."""
    return INTERRUPTED if number == signal.SIGINT else PREEMPTED


def printable(text: str) -> str:
    """Return a text with its control characters written out: names in files may hold a terminal's commands."""
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1] for character in text
    )


def explain(error: BaseException) -> int:
    """Print the error as one line, its passwords hidden, and return its exit code."""
    print(f"error: {printable(hide_passwords(str(error)))}", file=sys.stderr)
    return exit_code_of(error)
