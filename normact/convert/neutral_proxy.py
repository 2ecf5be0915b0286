"""The proxy variable under which Proxy Normalization does nothing."""

from __future__ import annotations

import functools
from typing import Tuple

import torch

from normact.activations import Activation
from normact.proxy import proxy_statistics

_POINTS = 161
_ROUNDS = 6
_BOUNDS = (4.0, 2.0)


@functools.lru_cache(maxsize=None)
def neutral_proxy(activation: Activation, eps: float) -> Tuple[float, float, float]:
    """(m, s) such that X ~ N(m, s^2) gives E[phi(X)] = 0 and Var[phi(X)] + eps = 1 as nearly as there is, and how near.

    Formula: of all m = a s with a in [-4, 4] and s in [.01, 100] the least max(|E[phi(X)]|, |1 / sqrt(Var + eps) - 1|),
    found on a grid that is refined around its best point. ReLU, whose mean is above 0, comes within .03.

    Args:
        activation: a name or a function.
        eps: of Proxy Normalization.
    """
    centre, reach = (0.0, 0.0), _BOUNDS  # of a, and of log10 s
    best = (0.0, 1.0, float("inf"))
    for _ in range(_ROUNDS):
        a, log_s = (
            torch.linspace(middle - width, middle + width, _POINTS, dtype=torch.float64).clamp(-bound, bound)
            for middle, width, bound in zip(centre, reach, _BOUNDS)
        )
        ratio, s = a.repeat_interleave(_POINTS), (10.0**log_s).repeat(_POINTS)
        mean, inverse_std = proxy_statistics(activation, s, ratio * s, eps=eps)
        distance = torch.maximum(mean.abs(), (inverse_std - 1.0).abs()).nan_to_num(nan=float("inf"))
        index = int(distance.argmin())
        if float(distance[index]) < best[2]:
            best = (float(ratio[index] * s[index]), float(s[index]), float(distance[index]))
            centre = (float(ratio[index]), float(s[index].log10()))
        reach = (reach[0] / 8, reach[1] / 8)
    return best
