"""The device's update formulas, two functions per optimizer.

The first makes of the gradient g, summed and multiplied by the loss scale ls, what gradient clipping is about; the
second makes of that, clipped, the new weight. Both take the weight w, the weight's state and the optimizer's numbers
for it, all in float32, and change the state. s = ls d undoes the loss scale, and makes the mean where d > 1.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple

import torch

from ..optim.lamb import trust_ratio

Tensors = Dict[str, torch.Tensor]
Step = Callable[[torch.Tensor, torch.Tensor, Tensors, Dict[str, Any]], torch.Tensor]


class Formula(NamedTuple):
    """The two functions of an optimizer."""

    direction: Step
    update: Step


def _gradient(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """g as it is."""
    return g


def _unscaled(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """g / s."""
    return g / n["gradientScaling"]


def _penalized(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """Weight decay as an L2 penalty: g / s + wd w takes the place of the gradient."""
    return g / n["gradientScaling"] + n["weightDecay"] * w


def _velocity(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """v = mm v + (1 - dm) (g / s + wd w); v, kept times the velocity scale, starts at 0.

    Nesterov: g / s + wd w + mm v.
    """
    step = n["dampeningScaleFactor"] * g + n["weightDecayScaleFactor"] * w
    velocity = state["velocity"] = n["scaledMomentum"] * state["velocity"] + step
    return step + n["scaledMomentum"] * velocity if n["nesterov"] else velocity


def _sgd_without_momentum(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """w (1 - lr (1 - dm) wd) - lr (1 - dm) / s g."""
    return w * n["weightDecayScaleFactor"] - n["scaledLearningRate"] * g


def _sgd_with_momentum(w: torch.Tensor, v: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """w - lr v."""
    return w - n["scaledLearningRate"] * v


def _adam(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """w - lr direction."""
    return w - n["learningRate"] * _adam_direction(g, state, n)


def _adamw(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """Decoupled weight decay: w - lr (direction + wd w)."""
    return w - n["learningRate"] * (_adam_direction(g, state, n) + n["weightDecay"] * w)


def _lamb(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """As AdamW, times the trust ratio min(|w|, max_weight_norm) / |u|."""
    update = _adam_direction(g, state, n) + n["weightDecay"] * w
    return w - n["learningRate"] * trust_ratio(w, update, n["maxWeightNorm"]) * update


def _adam_direction(g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """m' / (sqrt(s') + eps), m and s the moving means of g and g^2, divided by 1 - beta^t where bias is corrected."""
    beta1, beta2 = n["beta1"], n["beta2"]
    mean = state["mean"] = beta1 * state["mean"] + (1 - beta1) * g
    square = state["square"] = beta2 * state["square"] + (1 - beta2) * g * g
    if "step" in state:
        step = state["step"] = state["step"] + 1
        mean = mean / (1 - beta1**step)
        square = square / (1 - beta2**step)
    return mean / (square.sqrt() + n["eps"])


def _rmsprop(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """s the moving mean of g^2 (less the mean gradient squared where centered).

    b = mm b + g / (sqrt(s) + eps), w - lr b.
    """
    direction = g / (_mean_square(g, state, n).sqrt() + n["eps"])
    if "velocity" in state:
        direction = state["velocity"] = n["momentum"] * state["velocity"] + direction
    return w - n["learningRate"] * direction


def _rmsprop_tf(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """TensorFlow's form: s starts at 1, eps under the root, lr inside the momentum.

    b = mm b + lr g / sqrt(s + eps), w - b.
    """
    direction = n["learningRate"] * g / (_mean_square(g, state, n) + n["eps"]).sqrt()
    if "velocity" in state:
        direction = state["velocity"] = n["momentum"] * state["velocity"] + direction
    return w - direction


def _mean_square(g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    alpha = n["alpha"]
    square = state["square"] = alpha * state["square"] + (1 - alpha) * g * g
    if "mean" in state:
        mean = state["mean"] = alpha * state["mean"] + (1 - alpha) * g
        square = square - mean * mean
    return square


SGD_WITHOUT_MOMENTUM = Formula(_gradient, _sgd_without_momentum)
SGD_WITH_MOMENTUM = Formula(_velocity, _sgd_with_momentum)
ADAM = Formula(_penalized, _adam)
ADAMW = Formula(_unscaled, _adamw)
LAMB = Formula(_unscaled, _lamb)
RMSPROP = Formula(_penalized, _rmsprop)
RMSPROP_TF = Formula(_penalized, _rmsprop_tf)
