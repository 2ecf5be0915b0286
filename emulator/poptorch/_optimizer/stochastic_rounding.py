"""Half precision weights rounded at random, so that updates below half their last bit are not lost."""

from __future__ import annotations

from typing import Any, Optional

import torch

_FRACTION_BITS, _SMALLEST_EXPONENT = 10, -14  # of float16; below 2^-14 its steps stay as they are there


class StochasticRounding:
    """Rounds to one of the two neighbours in float16, to the nearer with the larger probability: right on average.

    It has a generator of its own, which all processes of a run seed alike, so that their weights stay equal.

    Args:
        seed: the option randomSeed.
    """

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    @classmethod
    def of(cls, options: Any) -> Optional[StochasticRounding]:
        """As the options say; None: to the nearest."""
        if not options._Popart.options.get("enableStochasticRounding", False):
            return None
        return cls(int(options.random_seed) if options.exists("random_seed") else 0)

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """floor(x / step + u) step, u uniform in [0, 1), step the distance of float16 numbers at x.

        Args:
            values: float32; x / step has 13 bits behind the point at most, as u has, so that nothing else is rounded.
        """
        _, exponent = torch.frexp(values)
        step = torch.ldexp(torch.ones_like(values), (exponent - 1).clamp(min=_SMALLEST_EXPONENT) - _FRACTION_BITS)
        u = torch.randint(1 << 13, values.shape, generator=self._generator).float() / (1 << 13)
        return torch.floor(values / step + u) * step
