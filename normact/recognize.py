"""Recognize norms and activations of networks made elsewhere, by class name and attributes.

Model libraries are not imported: a torch norm that also holds an activation as `act` (and perhaps a
`drop` in between) is a norm+activation layer; an activation module is known by its class's name.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple, Optional

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from normact.norm_act import NormAct

_BATCH_OR_INSTANCE = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)

# Class name -> activation; "identity" is no activation at all.
_MODULES: Dict[str, str] = {
    "Identity": "identity",
    "ReLU": "relu",
    "ReLU6": "relu6",
    "LeakyReLU": "leaky_relu",
    "SiLU": "silu",
    "Swish": "silu",
    "Hardswish": "hard_swish",
    "HardSwish": "hard_swish",
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
    "Mish": "mish",
    "ELU": "elu",
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
    F.gelu: "gelu",
    F.mish: "mish",
    F.elu: "elu",
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
# Attributes whose value changes the function: the only value that the name stands for.
_MODULE_ATTRIBUTES = {"elu": {"alpha": 1.0}, "softplus": {"beta": 1.0, "threshold": 20.0}}


class NormDescription(NamedTuple):
    """A norm found in a network.

    Args:
        channels: of the norm; 0 where it cannot be replaced.
        activation: the activation that the module itself holds, "identity" where it holds none.
        kept_because: why the norm cannot be replaced; empty where it can.
        no_pair_because: why its own activation cannot become part of the layer; empty where it can.
    """

    channels: int
    activation: str = "identity"
    kept_because: str = ""
    no_pair_because: str = ""


def describe_norm(module: nn.Module) -> Optional[NormDescription]:
    """What norm a module is; None for a module that is none."""
    name = type(module).__name__
    if isinstance(module, NormAct):
        return None
    if isinstance(module, _BATCH_OR_INSTANCE):
        channels = module.num_features
    elif isinstance(module, nn.GroupNorm):
        channels = module.num_channels
    elif isinstance(module, nn.LayerNorm) and name.endswith("2d") and len(module.normalized_shape) == 1:
        channels = module.normalized_shape[0]
    elif isinstance(module, nn.LayerNorm):
        return NormDescription(0, kept_because="normalizes trailing dims, not channels in dim 1")
    elif "Norm" in name and not any(
        "Norm" in type(child).__name__ for child in module.modules() if child is not module
    ):
        # A class without a norm inside, called a norm; a block called ConvNormAct has one inside.
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            return None
        return NormDescription(0, kept_because=f"{name} is not a kind of norm that can be replaced")
    else:
        return None
    if channels < 1:
        return NormDescription(0, kept_because="its channels are not known before the first forward")
    return _with_own_activation(module, channels)


def _with_own_activation(module: nn.Module, channels: int) -> NormDescription:
    children = dict(module.named_children())
    unknown = sorted(set(children) - {"act", "drop"})
    if unknown:
        return NormDescription(0, kept_because=f"holds modules of unknown use: {', '.join(unknown)}")
    activation = activation_of_module(children["act"]) if "act" in children else "identity"
    if activation is None:
        return NormDescription(channels, no_pair_because=f"activation {type(children['act']).__name__} is unknown")
    if "drop" in children and not is_pass_through(children["drop"]):
        return NormDescription(channels, activation, no_pair_because="active dropout between norm and activation")
    return NormDescription(channels, activation)


def is_pass_through(module: nn.Module) -> bool:
    """Whether a module hands its input on: an identity, or dropout with probability 0."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p == 0
    return type(module).__name__ == "Identity"


def activation_of_module(module: nn.Module) -> Optional[str]:
    """Name of the activation that a module is, "identity" for none; None where it is unknown."""
    name = _MODULES.get(type(module).__name__)
    if name == "leaky_relu":
        return f"leaky_relu({module.negative_slope})"
    if name == "gelu":
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(getattr(module, "approximate", "none"))
    expected = _MODULE_ATTRIBUTES.get(name or "", {})
    return name if all(getattr(module, key) == value for key, value in expected.items()) else None


def activation_of_call(node: torch.fx.Node) -> Optional[str]:
    """Name of the activation that a function or method call is; None where it is none or unknown."""
    options = {key: value for key, value in node.kwargs.items() if key not in ("inplace", "input")}
    positional = list(node.args[1:])
    if node.op == "call_method":
        return None if options or positional else _METHODS.get(str(node.target))
    name = _FUNCTIONS.get(node.target) if callable(node.target) else None
    if name == "leaky_relu":
        slope = options.get("negative_slope", positional[0] if positional else 0.01)
        return f"leaky_relu({slope})"
    if name == "gelu":
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(str(options.get("approximate", "none")))
    positional = [value for value in positional if not isinstance(value, bool)]  # a positional `inplace`
    expected = _MODULE_ATTRIBUTES.get(name or "", {})
    differs = any(expected.get(key) != value for key, value in options.items())
    return None if differs or (positional and expected and positional != list(expected.values())) else name
