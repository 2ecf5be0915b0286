"""The activation that a layer is given: a name where one is known, else a function that was looked at."""

from __future__ import annotations

import functools
from typing import Callable, List, Optional, cast

import torch
from torch import Tensor, nn

from normact.activations import (
    ACTIVATION_NAMES,
    Activation,
    GivenActivation,
    activation_function,
    activation_name,
    parse_activation,
)
from normact.known_activations import activation_of_function, activation_of_module, hooks_of
from normact.proxy import quadrature

# Of a gradient's size, or of 1. ReLU's kink costs 2e-2, softsign's jump of the second derivative 4e-3, tanh 1e-9.
MOST_GRADIENT_ERROR = 5e-3
_SCALES, _SHIFTS = (0.25, 1.0, 2.0), (0.0, 0.37, -1.1, 2.9)


def take_activation(activation: GivenActivation, channels: int, *, by_quadrature: bool) -> Activation:
    """Return a name, nn.PReLU, or another module or function that acts element by element; never a class.

    A module or function of torch that has a name becomes that name. A class is called without arguments. A module
    with parameters stays that module: given to several layers, these share it.

    Args:
        activation: what a network handed over.
        channels: of the layer.
        by_quadrature: whether its proxy statistics will be a quadrature where they have no closed form.

    Raises:
        ValueError: unknown name; a class that needs arguments; what is no function of each element by itself; with
            by_quadrature, a function with a kink that has no closed form here.
        TypeError: neither a name nor a callable.
    """
    made = _made(activation)
    if isinstance(made, nn.Module) and hooks_of(made):
        raise ValueError(f"activation {activation_name(made)} has hooks, which the layer would not run; remove them")
    name = _name_of(made)
    if name is not None:
        function = activation_function(name)
        if by_quadrature and name not in ACTIVATION_NAMES and parse_activation(name)[0] == "softplus":
            _check_smooth(name, function, 1, torch.device("cpu"))
        return name
    assert not isinstance(made, str)
    if isinstance(made, nn.PReLU):
        if made.num_parameters not in (1, channels):
            raise ValueError(
                f"activation {made} has {made.num_parameters} slopes and the layer {channels} channels; "
                f"use nn.PReLU() or nn.PReLU({channels})"
            )
        return made
    if any(tensor.is_meta for tensor in _tensors(made)):
        return made  # it has no values to look at
    # A module's tensors are where it is, and its values are looked at there.
    device = next((tensor.device for tensor in _tensors(made)), torch.device("cpu"))
    with torch.random.fork_rng(devices=[]):
        _check_elementwise(made, channels, device)
    if by_quadrature:
        _check_smooth(activation_name(made), made, channels, device)
    return made


def _made(activation: GivenActivation) -> Activation:
    kind = activation.func if isinstance(activation, functools.partial) else activation
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        try:
            module: nn.Module = activation()  # type: ignore[operator, call-arg, assignment]
        except TypeError as error:
            raise ValueError(
                f"activation {kind.__name__} cannot be made without arguments ({error}); give the module itself"
            ) from error
        return module
    if not isinstance(activation, str) and not callable(activation):
        raise TypeError(f"activation {activation!r} is a {type(activation).__name__}; give a name, function or module")
    return cast(Activation, activation)


def _name_of(activation: Activation) -> Optional[str]:
    if isinstance(activation, str):
        return activation
    if isinstance(activation, nn.Module):
        return activation_of_module(activation)
    return activation_of_function(activation)


def _tensors(activation: object) -> List[Tensor]:
    if not isinstance(activation, nn.Module):
        return []
    return [*activation.parameters(), *activation.buffers()]


@torch.no_grad()
def _check_elementwise(function: Callable[[Tensor], Tensor], channels: int, device: torch.device) -> None:
    """Check that each result depends only on the value in its place and on its channel, and is always the same."""
    name = activation_name(function)
    nodes = torch.linspace(-3.0, 3.0, 4, device=device).reshape(4, 1, 1, 1)
    x = nodes + torch.linspace(-1.0, 1.0, channels * 6, device=device).reshape(1, channels, 2, 3)
    try:
        out = function(x.clone())
        again = function(x.clone())
        rows = function(x.permute(0, 2, 3, 1).reshape(-1, channels))
    # Whatever the function raises.
    except Exception as error:
        raise ValueError(
            f"activation {name} cannot be used: of an input of shape {tuple(x.shape)} it raises "
            f"{type(error).__name__}: {error}; give a function of one tensor that acts element by element"
        ) from error
    if not isinstance(out, Tensor) or out.shape != x.shape:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"activation {name} gives {shape} for an input of shape {tuple(x.shape)}; "
            "it must act element by element and keep the shape"
        )
    if not torch.equal(out, again):
        raise ValueError(
            f"activation {name} gives other values for the same input at a second call; it has no statistics"
        )
    # The same values as pixels of one image, as pixels alone, and beside another first channel.
    pixels, expected = x.permute(0, 2, 3, 1).reshape(-1, channels), out.permute(0, 2, 3, 1).reshape(-1, channels)
    alone = torch.cat([function(pixel.clone()) for pixel in pixels.split(1)])
    moved = torch.cat([x[:, :1] + 1.0, x[:, 1:]], dim=1)
    for values, wanted in ((rows, expected), (alone, expected), (function(moved)[:, 1:], out[:, 1:])):
        if values.shape != wanted.shape or not torch.allclose(values, wanted, rtol=1e-5, atol=1e-6):
            raise ValueError(
                f"activation {name} does not act element by element: a value of its result depends on other values; "
                "apply it after the layer, which then takes activation=None"
            )


def _check_smooth(name: str, function: Callable[[Tensor], Tensor], channels: int, device: torch.device) -> None:
    """Compare the gradients of the quadrature with those of one whose steps are a sixteenth."""
    for shift in _SHIFTS:
        for scale in _SCALES:
            coarse, fine = (_gradients(function, shift, scale, channels, device, finer) for finer in (1, 16))
            error = ((coarse - fine).abs() / fine.abs().clamp(min=1.0)).max().item()
            if not error <= MOST_GRADIENT_ERROR:
                raise ValueError(
                    f"activation {name} has a kink or is too steep: a gradient of its proxy statistics would be off "
                    f'by {error:.2g}; give it by a name that has a closed form, or use proxy_method="sampled"'
                )


def _gradients(
    function: Callable[[Tensor], Tensor], shift: float, scale: float, channels: int, device: torch.device, finer: int
) -> Tensor:
    """Of mean and variance by shift and scale, each for all channels."""
    dtype = next((tensor.dtype for tensor in _tensors(function) if tensor.is_floating_point()), torch.float64)
    with torch.enable_grad():
        m, s = (
            torch.full((channels,), value, dtype=dtype, device=device, requires_grad=True) for value in (shift, scale)
        )
        mean, variance = quadrature(function, m, s, finer=finer)
        gradients = [torch.autograd.grad(v.sum(), (m, s), retain_graph=True) for v in (mean, variance)]
    return torch.stack([gradient for pair in gradients for gradient in pair])
