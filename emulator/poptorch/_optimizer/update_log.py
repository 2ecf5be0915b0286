"""What the device knows of an optimizer, as PopTorch logs it."""

from __future__ import annotations

from typing import Dict

from .._logging import logger
from .settings import OptimizerKind, OptimizerSettings, Setting


def log_settings(settings: OptimizerSettings) -> None:
    """Log the defaults, then every group, at level DEBUG."""
    kind = settings.kind.name.rstrip("12")
    scale = settings.loss_scaling
    types = {
        "accumType": settings.accum_type,
        "firstOrderMomentumAccumType": settings.first_order_type,
        "secondOrderMomentumAccumType": settings.second_order_type,
    }
    shown = ", ".join(f"{name}={str(dtype).split('.')[1]}" for name, dtype in types.items())
    logger.debug(
        "Updating graph optimizer with %s: %s lossScaling=%g%s, %s",
        kind,
        _shown(settings, settings.defaults, "default_"),
        scale.value,
        _constant(scale),
        shown,
    )
    for index, group in enumerate(settings.groups):
        logger.debug("Updating group %d optimizer with %s: %s", index, kind, _shown(settings, group, ""))


def _shown(settings: OptimizerSettings, group: Dict[str, Setting], prefix: str) -> str:
    texts = []
    for name, setting in group.items():
        is_tied = name == "velocity_scaling" and settings.kind == OptimizerKind.SGD2
        shown = settings.loss_scaling if is_tied else setting
        words = (prefix + ("learning_rate" if name == "lr" else name)).split("_")
        label = words[0] + "".join(word.capitalize() for word in words[1:])
        texts.append(f"{label}={shown.value:g}{_constant(shown)},")
    return " ".join(texts)


def _constant(setting: Setting) -> str:
    return " (const)" if setting.is_constant else ""
