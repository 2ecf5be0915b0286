"""What the commands have in common."""

from __future__ import annotations

import argparse
from typing import Callable

from torch import Tensor

# (source, count, size) -> the function that gives the images of a seed, (count, channels, size, size)
ImageLoader = Callable[[str, int, int], Callable[[int], Tensor]]
Commands = argparse._SubParsersAction


def add_command(commands: Commands, name: str, summary: str) -> argparse.ArgumentParser:
    """Return a command's parser; its help shows every default."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    return parser
