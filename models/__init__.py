"""The networks: a table of names, and `build_model`.

Networks are plain torch.nn modules that are handed the norm and activation they use (`norm_act`, a
normact.NormActFactory). They know no device, no file and no flag.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Dict, FrozenSet, Optional

from models.efficientnet import EFFICIENTNET_SHAPES, EfficientNet
from models.image_classifier import ImageClassifier
from models.resnet import LARGE_SHAPES, SMALL_SHAPES, ResNet, ResNetShape

if TYPE_CHECKING:
    from normact import NormActFactory

__all__ = ["NETWORKS", "ImageClassifier", "Network", "build_model"]


@dataclass(frozen=True)
class Network:
    """One row of the table.

    Args:
        constructor: called with num_classes, norm_act, in_channels and those of `options` that were given.
        image_size: side of the square images that the network was designed for.
        options: the optional arguments of build_model that the network has a use for.
    """

    constructor: Callable[..., ImageClassifier]
    image_size: int
    options: FrozenSet[str] = frozenset()


_COLUMNS = 3  # of names in a message


def _small_resnet(shape: ResNetShape, *, width: Optional[int] = None, **arguments: object) -> ResNet:
    return ResNet(shape if width is None else replace(shape, width=width), **arguments)  # type: ignore[arg-type]


NETWORKS: Dict[str, Network] = {
    **{name: Network(partial(_small_resnet, shape), 32, frozenset({"width"})) for name, shape in SMALL_SHAPES.items()},
    **{name: Network(partial(ResNet, shape), 224) for name, shape in LARGE_SHAPES.items()},
    **{
        name: Network(partial(EfficientNet, shape), image_size, frozenset({"drop_rate", "drop_path_rate"}))
        for name, (shape, image_size) in EFFICIENTNET_SHAPES.items()
    },
}


def unknown_network(name: str) -> str:
    """Return the message for a name that is not a network's: the nearest ones, then all of them in columns."""
    nearest = difflib.get_close_matches(name, NETWORKS, n=3, cutoff=0.0)
    names = list(NETWORKS)
    width = max(map(len, names))
    rows = -(-len(names) // _COLUMNS)
    table = ["  ".join(f"{word:{width}}" for word in names[row::rows]).rstrip() for row in range(rows)]
    lines = "".join(f"\n  {line}" for line in table)
    return f"unknown network {name!r}; the nearest names are {', '.join(nearest)}; all:{lines}"


def build_model(
    name: str,
    *,
    num_classes: int,
    norm_act: NormActFactory,
    in_channels: int = 3,
    width: Optional[int] = None,
    activation: Optional[str] = None,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> ImageClassifier:
    """Build one of NETWORKS with random weights (from torch's global generator, on torch's default device).

    Args:
        name: a key of NETWORKS.
        num_classes: size of the output; 0 gives the pooled features.
        norm_act: makes every norm with its activation, and the convolutions in front of a norm.
        in_channels: channels of the image.
        width: channels of the stem of a small ResNet; None for the network's own.
        activation: in the place of the network's own (ResNets: relu, EfficientNets: silu).
        drop_rate: share of the pooled features set to zero in training.
        drop_path_rate: probability of leaving out a block at the end of the network; it grows linearly from 0.

    Raises:
        ValueError: an unknown name, a value out of range, or an option that this network has no use for.
    """
    if name not in NETWORKS:
        raise ValueError(unknown_network(name))
    for rate_name, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"{rate_name} {rate} is not a probability in [0, 1); use 0 to switch it off")
    for size_name, size, least in (
        ("num_classes", num_classes, 0),
        ("in_channels", in_channels, 1),
        ("width", 1 if width is None else width, 1),
    ):
        if size < least:
            raise ValueError(f"{size_name} {size} is too small; it must be {least} or more")
    given: Dict[str, Any] = {"width": width, "drop_rate": drop_rate, "drop_path_rate": drop_path_rate}
    given = {option: value for option, value in given.items() if value not in (None, 0.0)}
    network = NETWORKS[name]
    for option, value in given.items():
        if option not in network.options:
            users = [other for other, row in NETWORKS.items() if option in row.options]
            raise ValueError(
                f"{name} has no {option} (received {value}); leave it out, or choose one of {', '.join(users)}"
            )
    if activation is not None:
        given["activation"] = activation
    return network.constructor(num_classes=num_classes, norm_act=norm_act, in_channels=in_channels, **given)
