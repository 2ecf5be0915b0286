"""Lines on the console, above a progress bar if there is one; a grid continues when the console is gone."""

from __future__ import annotations

import os
import sys

from tqdm import tqdm


def say(line: str) -> None:
    """Print `line`."""
    try:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    except (OSError, ValueError):  # closed, as after `| head`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  as long as the process
