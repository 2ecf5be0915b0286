"""The console of a command that was started without one, as `>&- 2>&-` or some services start it."""

import io
import os
import sys


def open_standard_streams() -> None:
    """Open whichever of standard input, output and error is closed, on the null device; every command does so first.

    A name that is not text in the terminal's encoding, as names of files may be, is printed with its bytes written out.

    Python leaves None in their place, which is not a file to write to. And the next files get their numbers: what a
    library writes to number 2 would be written into a checkpoint.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  as long as the process
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
