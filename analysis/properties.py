"""Table 1 of the paper as measurements: five properties of a norm, each as one number and the limit that decides it.

Source: Labatie et al. 2021, section 2 and Table 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, List, NamedTuple, Tuple

import torch
from torch import Tensor

from analysis.images import one_over_f_images
from analysis.norm_name import exact_factory
from analysis.random_power import measure_layer, propagate
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


class Property(NamedTuple):
    """One cell of the table.

    Args:
        measured: the number.
        meaning: what it is.
        limit: the condition that decides, for people.
        is_present: whether the norm has the property, by that condition.
    """

    measured: float
    meaning: str
    limit: str
    is_present: bool


def measure_properties(norm: str, shape: RandomNetShape, seed: int) -> Dict[str, Property]:
    """The five properties of a norm.

    Args:
        norm: a short name, see analysis.norm_name.
        shape: of the random net on which collapse and expressivity are judged.
        seed: of nets and images.
    """
    images = one_over_f_images(64, 16, seed)
    measures = [measure_layer(values).power for values in propagate(shape, exact_factory(norm), images, seed)]
    kept, instance = 1.0 - measures[-1][0], measures[0][1] + measures[0][3]
    change, growth, noise = scale_sensitivity(norm, seed), residual_growth(norm, seed), batch_noise(norm, seed)
    cells = (
        Property(change, "relative change of the output, weights scaled by 0.5 to 4", "< 1e-3", change < 1e-3),
        Property(growth, "power of layer 32 over that of layer 16, residual net", "< 4", growth < 4.0),
        Property(noise, "relative change of an image's output with its batch", "> 1e-3", noise > 1e-3),
        Property(kept, f"1 - P1 at layer {shape.depth}", "> 0.5", kept > 0.5),
        Property(instance, "P2 + P4 at layer 1", "> 0.01", instance > 0.01),
    )
    return dict(zip(PROPERTIES, cells))


@torch.no_grad()
def scale_sensitivity(norm: str, seed: int) -> float:
    """Relative change of a random net's output when the weights of its layers are multiplied by 0.5, 1, 2, 4, ..."""
    images = one_over_f_images(16, 8, seed)
    net = RandomNet(_SMALL, exact_factory(norm), seed).train()
    before = net(images)
    for index, layer in enumerate(net.layers()):
        layer.conv.weight.mul_(2.0 ** (index % 4 - 1))
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
