"""python -m datasets.NAME [--data-dir DIR]: obtains the files of a data set, and prints the folder that holds them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Callable, Optional, Sequence

from configs.exit_codes import EXPLAINED, explain


def obtain_command(
    name: str, what: str, obtain: Callable[[Optional[str]], Path], arguments: Optional[Sequence[str]]
) -> int:
    """Obtain and check the files; return 0, or 3 with a message on the error stream.

    Args:
        name: of the module that is run.
        what: it does, for --help.
        obtain: as said, from the value of --data-dir.
        arguments: of the command line; None: those of this process.
    """
    parser = argparse.ArgumentParser(prog=f"python -m datasets.{name}", description=what)
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the data; default: $DATA_DIR, else data/")
    data_dir = parser.parse_args(arguments).data_dir
    try:
        folder = obtain(data_dir)
    except EXPLAINED as error:
        return explain(error)
    print(folder)
    return 0
