"""Table 1 of the paper as measurements: five properties of a norm, each as one number and the limit that decides it.

Source: Labatie et al. 2021, section 2 and Table 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Dict, Iterable, List, NamedTuple, Tuple

import numpy as np
import torch
from torch import Tensor

from analysis.detector import detector_residual
from analysis.images import one_over_f_images
from analysis.norm_name import exact_factory
from models.random_net import RandomLayer, RandomNet, RandomNetShape

PROPERTIES = (
    "scale invariance",
    "control of activation scale",
    "regularizing noise",
    "avoidance of collapse",
    "preservation of expressivity",
)
# Table 1: whether a norm has each of PROPERTIES, in their order.
CLAIMED: Dict[str, Tuple[bool, ...]] = {
    "batch": (True, True, True, True, True),
    "layer": (True, True, False, False, True),
    "instance": (True, True, False, True, False),
    "layer+pn": (True, True, False, True, True),
}

_SMALL = RandomNetShape(width=32, depth=6)
_RESIDUAL_DEPTH = 32
_SCALES = (0.3, 1.0, 2.5, 7.0)


class Property(NamedTuple):
    """One cell of the table.

    Args:
        values: the number, of each net.
        meaning: what it is.
        limit: the condition that decides, in words.
        is_present: whether each net has the property, by that condition.
    """

    values: Tuple[float, ...]
    meaning: str
    limit: str
    is_present: Tuple[bool, ...]

    @property
    def described(self) -> str:
        """The lowest and the highest value."""
        low, high = f"{min(self.values):.2g}", f"{max(self.values):.2g}"
        return low if low == high else f"{low} to {high}"


def measure_properties(norm: str, layers: np.ndarray) -> Dict[str, Property]:
    """Return the five properties of a norm.

    Args:
        norm: a short name, see analysis.norm_name.
        layers: (nets, L, 4), the power of random nets with this norm, on which collapse is judged. The others are
            measured on as many nets of their own.
    """
    seeds, depth = range(len(layers)), layers.shape[1]
    kept = 1.0 - layers[:, -1, 0]

    def cell(values: Iterable[float], meaning: str, limit: str, has: Callable[[float], bool]) -> Property:
        numbers = tuple(float(value) for value in values)
        return Property(numbers, meaning, limit, tuple(has(value) for value in numbers))

    cells = (
        cell(
            (scale_sensitivity(norm, seed) for seed in seeds),
            "relative change of the output, weights scaled by 0.3 to 7",
            "< 1e-3",
            lambda change: change < 1e-3,
        ),
        cell(
            (residual_growth(norm, seed) for seed in seeds),
            "power of layer 32 over that of layer 16, residual net",
            "< 4",
            lambda growth: growth < 4,
        ),
        cell(
            (batch_noise(norm, seed) for seed in seeds),
            "relative change of an image's output with its batch",
            "> 1e-3",
            lambda noise: noise > 1e-3,
        ),
        cell(kept, f"1 - P1 at layer {depth}", "> 0.5", lambda kept: kept > 0.5),
        cell(
            (detector_residual(norm, seed) for seed in seeds),
            "part of a detector's map that a net fitted to it leaves unexplained",
            "< 0.25",
            lambda unexplained: unexplained < 0.25,
        ),
    )
    return dict(zip(PROPERTIES, cells))


@torch.no_grad()
def scale_sensitivity(norm: str, seed: int) -> float:
    """Relative change of a random net's output when the weights of its layers are multiplied by 0.3, 1, 2.5, 7, ...

    No powers of 2: these would change nothing in floating point even where a norm's constant is not zero.
    """
    images = one_over_f_images(16, 8, seed)
    net = RandomNet(_SMALL, exact_factory(norm), seed).train()
    before = net(images)
    for index, layer in enumerate(net.layers()):
        layer.conv.weight.mul_(_SCALES[index % len(_SCALES)])
    return _relative_change(before, net(images))


@torch.no_grad()
def residual_growth(norm: str, seed: int) -> float:
    """Power of x^32 over power of x^16 where x^l = x^(l-1) + conv^l(norm_act^l(x^(l-1))): 2 where it grows linearly.

    Without a norm each layer multiplies the power by about 1.5: 650.
    """
    shape = replace(_SMALL, in_channels=_SMALL.width)
    stem = RandomLayer(_SMALL, exact_factory(norm), 1, seed)
    x = stem.conv(one_over_f_images(16, 8, seed))
    powers: List[float] = []
    for number in range(2, _RESIDUAL_DEPTH + 2):
        layer = RandomLayer(shape, exact_factory(norm), number, seed).train()
        x = x + layer.conv(layer.norm_act(x))
        powers.append(float((x.double() ** 2).mean()))
    return powers[_RESIDUAL_DEPTH - 1] / powers[_RESIDUAL_DEPTH // 2 - 1]


@torch.no_grad()
def batch_noise(norm: str, seed: int) -> float:
    """Relative change of an image's output, in training form, when the other 15 images of its batch are others."""
    images = one_over_f_images(31, 8, seed)
    net = RandomNet(_SMALL, exact_factory(norm), seed).train()
    first, second = images[:16], torch.cat([images[:1], images[16:]])
    return _relative_change(net(first)[:1], net(second)[:1])


def _relative_change(before: Tensor, after: Tensor) -> float:
    return float((after - before).norm() / before.norm())
