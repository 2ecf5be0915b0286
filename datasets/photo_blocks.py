"""Divide a photograph into blocks, so that the pixels to train on and those to evaluate on are apart.

Blocks of 96 x 96 pixels have 8 unused pixels between neighbours. A quarter of them, those with
(row + column) mod 4 = 3, is for evaluation.
"""

from __future__ import annotations

from typing import Iterator, Tuple

BLOCK, MARGIN = 96, 8
EVALUATION_BLOCKS = 3, 4  # (row + column) mod 4 = 3


def blocks(height: int, width: int) -> Iterator[Tuple[str, int, int]]:
    """Give half ("train" or "val"), top and left of every block of a photograph."""
    stride = BLOCK + MARGIN
    remainder, divisor = EVALUATION_BLOCKS
    for row in range((height + MARGIN) // stride):
        for column in range((width + MARGIN) // stride):
            half = "val" if (row + column) % divisor == remainder else "train"
            yield half, row * stride, column * stride
