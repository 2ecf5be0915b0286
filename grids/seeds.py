"""How seeds and names are written."""

import re
from typing import List, Tuple

MOST_SEEDS = 10_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_+-]*")
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")


def parse_seeds(text: str) -> Tuple[int, ...]:
    """Return the numbers that `0-3,8` names, in its order.

    Raises:
        ValueError: other text, and a range that ends before it begins.
    """
    seeds: List[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last - first >= MOST_SEEDS or len(seeds) > MOST_SEEDS:
            raise ValueError(f"seeds {text[:80]!r}: more than {MOST_SEEDS:,} runs of each row; give fewer")
        if first > last:
            raise ValueError(f"seeds {text!r}: expected numbers and ranges, such as 0-5 or 0,2,7-9")
        seeds += range(first, last + 1)
    return tuple(seeds)


def check_name(name: str) -> None:
    """Check that a row's or column's name can be a file's.

    Raises:
        ValueError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"name {name!r}: rows and columns name files; use letters, digits, _, + and -")
