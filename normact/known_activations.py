"""The activations of torch and of model libraries, by their modules, functions and methods.

Model libraries are not imported: a module is known by its class's name, and outside torch by its values too, since
others give a name to another function.
"""

from __future__ import annotations

import functools
from typing import Any, Callable, Dict, Optional

import torch
import torch.fx
import torch.nn.functional as F
import torch.nn.utils.parametrize
from torch import nn

from normact.activations import activation_function

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# Class name -> activation; "identity" is not an activation at all.
_MODULES: Dict[str, str] = {
    "Identity": "identity",
    "ReLU": "relu",
    "ReLU6": "relu6",
    "LeakyReLU": "leaky_relu",
    "SiLU": "silu",
    "Swish": "silu",
    "MemoryEfficientSwish": "silu",
    "Hardswish": "hard_swish",
    "HardSwish": "hard_swish",
    "Hardsigmoid": "hard_sigmoid",
    "HardSigmoid": "hard_sigmoid",
    "Hardtanh": "hard_tanh",
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
    "Mish": "mish",
    "ELU": "elu",
    "CELU": "celu",
    "SELU": "selu",
    "Softplus": "softplus",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
}
_FUNCTIONS: Dict[Callable[..., Any], str] = {
    F.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu6: "relu6",
    F.leaky_relu: "leaky_relu",
    F.silu: "silu",
    F.hardswish: "hard_swish",
    F.hardsigmoid: "hard_sigmoid",
    F.hardtanh: "hard_tanh",
    F.gelu: "gelu",
    F.mish: "mish",
    F.elu: "elu",
    F.celu: "celu",
    torch.celu: "celu",
    F.selu: "selu",
    torch.selu: "selu",
    F.softplus: "softplus",
    torch.sigmoid: "sigmoid",
    F.sigmoid: "sigmoid",
    torch.tanh: "tanh",
    F.tanh: "tanh",
}
_METHODS = {
    "relu": "relu",
    "relu_": "relu",
    "sigmoid": "sigmoid",
    "sigmoid_": "sigmoid",
    "tanh": "tanh",
    "tanh_": "tanh",
}
# The arguments that change the function, in the order of a call, with torch's defaults. The first may be part of the
# name, as in elu(0.5); the others have no name but their default's.
_ARGUMENTS: Dict[str, Dict[str, Any]] = {
    "leaky_relu": {"negative_slope": 0.01},
    "elu": {"alpha": 1.0},
    "celu": {"alpha": 1.0},
    "softplus": {"beta": 1.0, "threshold": 20.0},
    "hard_tanh": {"min_val": -1.0, "max_val": 1.0},
    "gelu": {"approximate": "none"},
}
_WITH_NUMBER = ("leaky_relu", "elu", "celu", "softplus")
_HOMES = ("torch.nn.modules.activation", "timm.layers.activations", "monai.networks.blocks.activation")
_POINTS = (-7.0, -2.5, -0.75, 0.0, 0.5, 3.5, 7.0)


def hooks_of(module: nn.Module) -> bool:
    """Whether more than its forward runs when the module is called."""
    return any(getattr(module, name, None) for name in _HOOKS)


def activation_of_module(module: nn.Module) -> Optional[str]:
    """Name of the activation that a module is, "identity" for none; None where it is none that has a name."""
    name = None if isinstance(module, torch.jit.ScriptModule) else _MODULES.get(type(module).__name__)
    if name is None:
        return None
    arguments = {key: getattr(module, key, default) for key, default in _ARGUMENTS.get(name, {}).items()}
    full = _name_with(name, arguments)
    is_of_torch = type(module).__module__ == "torch.nn.modules.activation" or name == "identity"
    return full if full is None or is_of_torch or _has_values_of(module, full) else None


def is_activation(module: nn.Module) -> bool:
    """Whether a module is of a class that libraries keep among their activations, with or without a name here.

    Those with parameters do more than one function, but for PReLU.
    """
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule) or torch.nn.utils.parametrize.is_parametrized(module):
        return False
    if kind.__module__ not in _HOMES:
        return activation_of_module(module) is not None
    return (isinstance(module, nn.PReLU) or not any(True for _ in module.parameters())) and not list(module.children())


def _has_values_of(module: nn.Module, name: str) -> bool:
    if any(True for _ in module.parameters()):
        return False  # they may be learned
    points = torch.tensor(_POINTS, device="cpu").reshape(1, 1, 1, -1)
    try:
        with torch.no_grad():
            # Not a call of the module, which a trace under way would record.
            return bool(torch.allclose(module.forward(points.clone()), activation_function(name)(points)))
    except Exception:  # whatever its code raises
        return False


def activation_of_function(function: Callable[..., Any]) -> Optional[str]:
    """Name of the activation that a function of torch is, with the arguments that functools.partial binds."""
    if isinstance(function, functools.partial):
        return _name_of_call(function.func, (None, *function.args), function.keywords) if not function.args else None
    return _name_of_call(function, (None,), {})


def activation_of_call(node: torch.fx.Node) -> Optional[str]:
    """Name of the activation that a function or method call is; None where it is none or unknown."""
    if node.op == "call_method":
        return None if node.kwargs or node.args[1:] else _METHODS.get(str(node.target))
    return _name_of_call(node.target, node.args, node.kwargs)


def _name_of_call(function: Any, args: Any, options: Any) -> Optional[str]:
    try:
        name = _FUNCTIONS.get(function)
    except TypeError:  # no hash
        name = None
    if name is None:
        return None
    arguments = dict(_ARGUMENTS.get(name, {}))
    given = {key: value for key, value in options.items() if key not in ("inplace", "input")}
    positional = [value for value in args[1:] if not isinstance(value, bool)]  # a positional `inplace`
    given.update(zip(arguments, positional))
    if set(given) - set(arguments) or len(positional) > len(arguments):
        return None
    return _name_with(name, {**arguments, **given})


def _name_with(name: str, arguments: Dict[str, Any]) -> Optional[str]:
    """Return the name of an activation with these arguments; None where no name says them."""
    defaults = _ARGUMENTS.get(name, {})
    changed = {key for key, value in arguments.items() if value != defaults[key]}
    if name == "gelu":
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(str(arguments["approximate"]))
    if name == "leaky_relu":
        return f"leaky_relu({arguments['negative_slope']})"
    first = next(iter(defaults), None)
    if changed - {first} or (changed and name not in _WITH_NUMBER):
        return None
    if name == "celu" and not changed:
        return "elu"  # the same function
    return f"{name}({arguments[str(first)]})" if changed else name
