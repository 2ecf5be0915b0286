"""What an optimizer's settings are on the device: which numbers it computes with, and which of them may change."""

from __future__ import annotations

from typing import Dict

from ..errors import backend_error
from .settings import OptimizerKind, OptimizerSettings, Setting

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


def device_settings(
    settings: OptimizerSettings, group: Dict[str, Setting], has_momentum: bool, divisor: int
) -> Dict[str, Setting]:
    """Return a group's numbers by their names on the device, which combines those of SGD.

    Args:
        settings: with the loss scale.
        group: of the weight.
        has_momentum: of SGD.
        divisor: makes the mean of summed gradients.
    """
    if settings.kind not in (OptimizerKind.SGD1, OptimizerKind.SGD2):
        return {_DEVICE_NAMES[name]: setting for name, setting in group.items()}
    return _sgd_settings(settings, group, has_momentum, divisor)


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


def _sgd_settings(
    settings: OptimizerSettings, group: Dict[str, Setting], has_momentum: bool, divisor: int
) -> Dict[str, Setting]:
    scaling, rate, decay, dampening = settings.loss_scaling, group["lr"], group["weight_decay"], group["dampening"]
    damped = 1 - dampening.value
    if not has_momentum:
        damped_rate = rate.value * damped
        return {
            "scaledLearningRate0": _combined(damped_rate / (scaling.value * divisor), rate, scaling, dampening),
            "weightDecayScaleFactor0": _combined(1 - damped_rate * decay.value, rate, decay, dampening),
        }
    variant = "1" if settings.kind == OptimizerKind.SGD1 else "2"
    # Kept apart from the accumulator, the velocity is scaled as the loss is.
    velocity = group["velocity_scaling"] if settings.kind == OptimizerKind.SGD1 else scaling
    return {
        f"scaledLearningRate{variant}": _combined(rate.value / velocity.value, rate, velocity),
        f"weightDecayScaleFactor{variant}": _combined(
            damped * decay.value * velocity.value, decay, velocity, dampening
        ),
        f"dampeningScaleFactor{variant}": _combined(
            damped * velocity.value / (scaling.value * divisor), velocity, scaling, dampening
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
