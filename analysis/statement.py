"""One row of the verdict page, and how its numbers are written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence, Union

import numpy as np


@dataclass(frozen=True)
class Statement:
    """One row of the verdict page.

    Args:
        name: where the paper says it.
        claimed: what it says.
        measured: what was measured: the number, and how far it is known.
        bound: what the number was held against.
        holds: the verdict; None where the measurement is too uncertain for one.
    """

    name: str
    claimed: str
    measured: str
    bound: str
    holds: Optional[bool]

    @property
    def verdict(self) -> str:
        return "not decided" if self.holds is None else "holds" if self.holds else "DOES NOT HOLD"


def spread(values: Union[np.ndarray, Sequence[float]], digits: int = 3) -> str:
    """Return the mean over nets, with the lowest and the highest: 0.050 (0.041 to 0.062)."""
    mean, low, high = (f"{value:.{digits}f}" for value in (np.mean(values), np.min(values), np.max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"
