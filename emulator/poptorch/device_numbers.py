"""What an optimizer's settings are on the device: which numbers it computes with, and which of them may change."""

from __future__ import annotations

from typing import Dict

from .errors import backend_error
from .optimizer_settings import OptimizerKind, OptimizerSettings, Setting

_DEVICE_NAMES = {
    "lr": "learningRate",
    "weight_decay": "weightDecay",
    "momentum": "momentum",
    "alpha": "alpha",
    "eps": "eps",
    "beta1": "beta1",
    "beta2": "beta2",
    "max_weight_norm": "maxWeightNorm",
}


def device_settings(settings: OptimizerSettings, group: Dict[str, Setting], has_momentum: bool) -> Dict[str, Setting]:
    """A group's numbers by their names on the device, which combines those of SGD."""
    if settings.kind not in (OptimizerKind.SGD1, OptimizerKind.SGD2):
        return {_DEVICE_NAMES[name]: setting for name, setting in group.items()}
    return _sgd_settings(settings, group, has_momentum)


def check_constants(compiled: OptimizerSettings, new: OptimizerSettings) -> None:
    """Compare with the settings that the model was compiled with.

    Raises:
        Error: a constant would change, or become variable.
    """
    _check_constant("loss_scaling", compiled.loss_scaling, new.loss_scaling)
    for old_group, new_group in zip([compiled.defaults, *compiled.groups], [new.defaults, *new.groups]):
        for name, setting in new_group.items():
            if name != "velocity_scaling" or new.kind == OptimizerKind.SGD1:  # else tied to the loss's
                _check_constant(name, old_group[name], setting)


def _sgd_settings(settings: OptimizerSettings, group: Dict[str, Setting], has_momentum: bool) -> Dict[str, Setting]:
    scaling, rate, decay = settings.loss_scaling, group["lr"], group["weight_decay"]
    if not has_momentum:
        return {
            "scaledLearningRate0": _combined(rate.value / scaling.value, rate, scaling),
            "weightDecayScaleFactor0": _combined(1 - rate.value * decay.value, rate, decay),
        }
    variant = "1" if settings.kind == OptimizerKind.SGD1 else "2"
    # Kept apart from the accumulator, the velocity is scaled as the loss is.
    velocity = group["velocity_scaling"] if settings.kind == OptimizerKind.SGD1 else scaling
    damped = 1 - group["dampening"].value
    return {
        f"scaledLearningRate{variant}": _combined(rate.value / velocity.value, rate, velocity),
        f"weightDecayScaleFactor{variant}": _combined(
            damped * decay.value * velocity.value, decay, velocity, group["dampening"]
        ),
        f"dampeningScaleFactor{variant}": _combined(
            damped * velocity.value / scaling.value, velocity, scaling, group["dampening"]
        ),
        f"scaledMomentum{variant}": group["momentum"],
    }


def _combined(value: float, *parts: Setting) -> Setting:
    return Setting(value, all(part.is_constant for part in parts))


def _check_constant(name: str, old: Setting, new: Setting) -> None:
    if old.is_constant != new.is_constant:
        was, now = ("a constant", "variable") if old.is_constant else ("variable", "a constant")
        raise backend_error(f"{name} was {was} when the model was compiled and cannot become {now}")
    if old.is_constant and old.value != new.value:
        raise backend_error(
            f"{name} is a constant of the compiled model ({old.value}) and cannot become {new.value}; "
            "mark it as variable before compiling, or call destroy() first"
        )
