"""The activations that a norm can be paired with: by name, or as a function or module."""

from __future__ import annotations

import functools
from typing import Any, Callable, Dict, Optional, Tuple, Type, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What a network may name, or hand over directly: a function of one tensor, element by element.
Activation = Union[str, Callable[[Tensor], Tensor]]
# What a layer may be given beside it: a class of modules, of which each layer makes its own.
GivenActivation = Union[Activation, Type[nn.Module]]


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
    "hard_sigmoid": F.hardsigmoid,
    "hard_tanh": F.hardtanh,
    "elu": F.elu,
    "celu": F.celu,
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
# Those that may be named with a number, as in leaky_relu(0.2): torch's argument, and its default.
_PARAMETERS: Dict[str, Tuple[str, float]] = {
    "leaky_relu": ("negative_slope", 0.01),
    "elu": ("alpha", 1.0),
    "celu": ("alpha", 1.0),
    "softplus": ("beta", 1.0),
}


def parse_activation(activation: Activation) -> Tuple[str, Optional[float]]:
    """Return the name alone, and the number that belongs to it: ("leaky_relu", 0.2); an empty name for a function.

    Raises:
        ValueError: what stands in the parentheses is not a number, or one that the activation cannot have.
    """
    if not isinstance(activation, str):
        return "", None
    name, bracket, rest = activation.partition("(")
    if name not in _PARAMETERS:
        return activation, None
    argument, number = _PARAMETERS[name]
    if bracket:
        try:
            number = float(rest[:-1] if rest.endswith(")") else "")
        except ValueError as error:
            words = argument.replace("negative_", "")
            raise ValueError(
                f"activation {activation!r}: the {words} is not a number; write for example {name}(0.2)"
            ) from error
    if number <= 0 and name in ("celu", "softplus"):
        raise ValueError(f"activation {activation!r}: {argument} must be above 0")
    return name, number


def activation_function(activation: Activation) -> Callable[[Tensor], Tensor]:
    """Return the function of a named activation; a callable is returned as it is.

    Args:
        activation: one of ACTIVATION_NAMES; leaky_relu(slope), elu(alpha), celu(alpha) or softplus(beta); or a
            callable. The slope of nn.PReLU takes the type of the input.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(activation, nn.PReLU):
        return functools.partial(_prelu, activation)
    if not isinstance(activation, str):
        return activation
    function = _PIECEWISE.get(activation) or _SMOOTH.get(activation)
    if function is not None:
        return function
    name, number = parse_activation(activation)
    if number is None:
        raise ValueError(
            f"unknown activation {activation!r}; known: {', '.join(ACTIVATION_NAMES)}, "
            f"{', '.join(f'{known}({argument})' for known, (argument, _) in _PARAMETERS.items())}; "
            "or give a function of one tensor"
        )
    options: Dict[str, Any] = {_PARAMETERS[name][0]: number}
    return functools.partial(_PIECEWISE.get(name) or _SMOOTH[name], **options)


def _prelu(module: nn.PReLU, x: Tensor) -> Tensor:
    return F.prelu(x, module.weight.to(x.dtype))


def activation_name(activation: Activation) -> str:
    """Return the name by which reports and checkpoints call an activation."""
    if isinstance(activation, str):
        return activation
    return getattr(activation, "__name__", type(activation).__name__)
