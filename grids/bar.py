"""How far a grid is: a bar with the time left on a terminal, and a line for each run that ended."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Optional, Type

from tqdm import tqdm

from configs.counted import counted
from experiment.words import time_left
from grids.console import say


class Bar:
    """Used as a context.

    Args:
        total: runs to do.
    """

    def __init__(self, total: int) -> None:
        self._started = time.monotonic()
        self._left = ""
        self._total = total
        tqdm.monitor_interval = 0  # no thread that redraws: `show` does, and processes are forked beside it
        self._bar = tqdm(total=total, disable=None, bar_format="{percentage:3.0f}%|{bar}| {desc}")

    def __enter__(self) -> "Bar":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._bar.close()

    def show(self, done: float, gained: float) -> None:
        """Show how far the grid is: runs done, with parts of those under way, and how many of them since the start."""
        minutes = (time.monotonic() - self._started) / 60
        self._left = f", {time_left(60 * minutes / gained * (self._total - done))}" if gained > 0 else ""
        self._bar.n = done
        self._bar.set_description_str(f"{done:.1f} of {counted(self._total, 'run')}, {minutes:.0f} min{self._left}")

    def ended(self, count: int, line: str) -> None:
        """Print the line of the run that ended as the `count`-th."""
        say(f"[{count}/{self._total}] {line}{self._left}")
