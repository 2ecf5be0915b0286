"""Types of numbers and places on command lines: argparse reports what they raise, with the option's name."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Callable

from configs.errors import ConfigError
from configs.output_place import check_output_file, check_output_folder

MOST = 2**31 - 1
MOST_PIXELS = 2**16  # per side of an image
MOST_CLASSES = 10**6
MOST_BATCH = 2**20  # images of one weight update


def whole(least: int = 1, most: int = MOST) -> Callable[[str], int]:
    """Return the type of options that are a whole number from `least` to `most`."""
    rule = f"of {least} or more" if most == MOST else f"from {least} to {most:,}"

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text[:80]} is not a whole number {rule}")
        return value

    return read


def real(least: float = -math.inf, most: float = math.inf) -> Callable[[str], float]:
    """Return the type of options that are a finite number from `least` to `most`."""
    bounds = [f"{word} {bound:g}" for word, bound in (("from", least), ("to", most)) if math.isfinite(bound)]

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most):
            raise argparse.ArgumentTypeError(f"{text[:80]} is not {' '.join(['a number', *bounds])}")
        return value

    return read


positive = whole()


def output_file(text: str) -> Path:
    """Return the path of a file that can be written: a type of options."""
    return _checked(Path(text), check_output_file)


def output_folder(text: str) -> Path:
    """Return the path of a folder that can be written to, or made: a type of options."""
    return _checked(Path(text), check_output_folder)


def _checked(path: Path, check: Callable[[Path], None]) -> Path:
    try:
        check(path)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path
