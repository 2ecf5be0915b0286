"""The activations that a norm can be paired with, by name."""

from __future__ import annotations

import re
from typing import Callable, Dict, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

# What a network may name, or hand over directly: a function of one tensor, element by element.
Activation = Union[str, Callable[[Tensor], Tensor]]

DEFAULT_LEAKY_SLOPE = 0.01
_LEAKY_WITH_SLOPE = re.compile(r"leaky_relu\((.+)\)")


def _identity(x: Tensor) -> Tensor:
    return x


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


# Piecewise polynomials and exponentials: their proxy statistics have closed forms.
_PIECEWISE: Dict[str, Callable[[Tensor], Tensor]] = {
    "identity": _identity,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "relu6": F.relu6,
    "hard_swish": F.hardswish,
    "elu": F.elu,
    "selu": F.selu,
}
# Differentiable everywhere: their proxy statistics are a quadrature.
_SMOOTH: Dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "mish": F.mish,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
ACTIVATION_NAMES = tuple(sorted([*_PIECEWISE, *_SMOOTH]))


def leaky_slope(activation: Activation) -> Optional[float]:
    """The slope k below zero of `leaky_relu` or `leaky_relu(k)`; None for any other activation."""
    if activation == "leaky_relu":
        return DEFAULT_LEAKY_SLOPE
    match = _LEAKY_WITH_SLOPE.fullmatch(activation) if isinstance(activation, str) else None
    if match is None:
        return None
    try:
        return float(match.group(1))
    except ValueError as error:
        raise ValueError(
            f"activation {activation!r}: the slope is not a number; write for example leaky_relu(0.2)"
        ) from error


def activation_function(activation: Activation) -> Callable[[Tensor], Tensor]:
    """The function of a named activation; a callable is returned as it is.

    Args:
        activation: one of ACTIVATION_NAMES, `leaky_relu(k)` with slope k, or a callable.

    Raises:
        ValueError: the name is unknown.
    """
    if not isinstance(activation, str):
        return activation
    function = _PIECEWISE.get(activation) or _SMOOTH.get(activation)
    if function is not None:
        return function
    slope = leaky_slope(activation)
    if slope is None:
        raise ValueError(
            f"unknown activation {activation!r}; known: {', '.join(ACTIVATION_NAMES)}, leaky_relu(slope); "
            "or give a function of one tensor"
        )
    return _LeakyReLU(slope)


class _LeakyReLU:
    """Leaky ReLU of a given slope, as a picklable function."""

    def __init__(self, slope: float) -> None:
        self.slope = slope

    def __call__(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.slope)


def activation_name(activation: Activation) -> str:
    """The name by which reports and checkpoints call an activation."""
    if isinstance(activation, str):
        return activation
    return getattr(activation, "__name__", type(activation).__name__)
