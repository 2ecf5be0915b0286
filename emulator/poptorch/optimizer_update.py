"""The device's update formulas, one function per optimizer.

Each takes the weight w, the gradient g (multiplied by the loss scale ls), the weight's state and the optimizer's
numbers for it, all in float32, changes the state and returns the new weight.
"""

from __future__ import annotations

from typing import Any, Callable, Dict

import torch

from .lamb import trust_ratio

Tensors = Dict[str, torch.Tensor]
Update = Callable[[torch.Tensor, torch.Tensor, Tensors, Dict[str, Any]], torch.Tensor]


def sgd_without_momentum(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """w (1 - lr wd) - lr / ls g."""
    return w * n["weightDecayScaleFactor"] - n["scaledLearningRate"] * g


def sgd_with_momentum(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """v = mm v + (1 - dm) (g / ls + wd w), w - lr v; v, kept times the velocity scale, starts at 0.

    Nesterov: w - lr (g / ls + wd w + mm v).
    """
    step = n["dampeningScaleFactor"] * g + n["weightDecayScaleFactor"] * w
    velocity = state["velocity"] = n["scaledMomentum"] * state["velocity"] + step
    if n["nesterov"]:
        velocity = step + n["scaledMomentum"] * velocity
    return w - n["scaledLearningRate"] * velocity


def adam(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """Weight decay as an L2 penalty: g / ls + wd w takes the place of the gradient."""
    return w - n["learningRate"] * _adam_direction(g / n["lossScaling"] + n["weightDecay"] * w, state, n)


def adamw(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """Decoupled weight decay: w - lr (direction + wd w)."""
    return w - n["learningRate"] * (_adam_direction(g / n["lossScaling"], state, n) + n["weightDecay"] * w)


def lamb(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """As AdamW, times the trust ratio min(|w|, max_weight_norm) / |u|."""
    update = _adam_direction(g / n["lossScaling"], state, n) + n["weightDecay"] * w
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


def rmsprop(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """s the moving mean of g^2 (less the mean gradient squared where centered), g with the L2 penalty added.

    b = mm b + g / (sqrt(s) + eps), w - lr b.
    """
    g, square = _rms(g, w, state, n)
    direction = g / (square.sqrt() + n["eps"])
    if "velocity" in state:
        direction = state["velocity"] = n["momentum"] * state["velocity"] + direction
    return w - n["learningRate"] * direction


def rmsprop_tf(w: torch.Tensor, g: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> torch.Tensor:
    """TensorFlow's form: s starts at 1, eps under the root, lr inside the momentum.

    b = mm b + lr g / sqrt(s + eps), w - b.
    """
    g, square = _rms(g, w, state, n)
    direction = n["learningRate"] * g / (square + n["eps"]).sqrt()
    if "velocity" in state:
        direction = state["velocity"] = n["momentum"] * state["velocity"] + direction
    return w - direction


def _rms(g: torch.Tensor, w: torch.Tensor, state: Tensors, n: Dict[str, Any]) -> Any:
    g = g / n["lossScaling"] + n["weightDecay"] * w
    alpha = n["alpha"]
    square = state["square"] = alpha * state["square"] + (1 - alpha) * g * g
    if "mean" in state:
        mean = state["mean"] = alpha * state["mean"] + (1 - alpha) * g
        square = square - mean * mean
    return g, square
