"""torch.hub entry points: every network of models.NETWORKS by name.

    import torch
    model = torch.hub.load("path/to/this/repository", "resnet50", source="local", norm="group", num_groups=8)

An entry point takes the optional arguments of models.build_model (num_classes, in_channels, width, activation,
drop_rate, drop_path_rate); every other argument goes to normact.NormActFactory. Weights are random: none are
published yet.
"""

from __future__ import annotations

from typing import Any as _Any
from typing import Callable as _Callable
from typing import Optional as _Optional

from models import NETWORKS as _NETWORKS
from models import ImageClassifier as _ImageClassifier
from models import build_model as _build_model
from normact import NormActFactory as _NormActFactory

dependencies = ["torch"]

# torch.hub lists every callable whose name has no leading underscore; hence the names above.


def _entry_point(name: str) -> _Callable[..., _ImageClassifier]:
    def build(
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: _Optional[int] = None,
        activation: _Optional[str] = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **norm_arguments: _Any,
    ) -> _ImageClassifier:
        return _build_model(
            name,
            num_classes=num_classes,
            norm_act=_NormActFactory(**norm_arguments),
            in_channels=in_channels,
            width=width,
            activation=activation,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = (
        f"{name}, native image size {_NETWORKS[name].image_size}: (N, in_channels, H, W) -> (N, num_classes); "
        "further arguments go to normact.NormActFactory."
    )
    return build


globals().update({name: _entry_point(name) for name in _NETWORKS})
