"""Recognize norms and activations of networks made elsewhere, by their very classes.

Model libraries are not imported: a norm is known by its class's full name, since a class that extends a norm may do
more than that norm. An activation module is known by its class's name.
"""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, NamedTuple, Optional

import torch
import torch.fx
import torch.nn.functional as F
import torch.nn.utils.parametrize
from torch import nn

from normact.norm_act import NormAct

_TORCH = "torch.nn.modules."
_TIMM = "timm.layers."
# Full names of the classes whose whole function is known: a norm over each channel's or group's positions, with an
# affine, and in timm's ...Act classes `drop` and `act` after it.
_KNOWN = frozenset(
    [f"{_TORCH}batchnorm.{name}" for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")]
    + [f"{_TORCH}instancenorm.InstanceNorm{dims}d" for dims in (1, 2, 3)]
    + [f"{_TORCH}normalization.GroupNorm"]
    + [f"{_TIMM}norm_act.{name}" for name in ("BatchNormAct2d", "SyncBatchNormAct", "GroupNormAct", "GroupNorm1Act")]
    + [f"{_TIMM}norm.{name}" for name in ("GroupNorm", "GroupNorm1")]
    + ["timm.models.metaformer.GroupNorm1NoBias"]
)
_LAYER_NORMS = frozenset(
    [f"{_TORCH}normalization.LayerNorm", "timm.models.metaformer.LayerNormNoBias"]
    + [f"{_TIMM}norm.{name}" for name in ("LayerNorm", "LayerNormFp32")]
    + [f"{_TIMM}norm_act.{name}" for name in ("LayerNormAct", "LayerNormActFp32")]
)
_PIXEL_NORMS = frozenset(
    ["torchvision.models.convnext.LayerNorm2d", "timm.models.metaformer.LayerNorm2dNoBias"]
    + [f"{_TIMM}norm.{name}" for name in ("LayerNorm2d", "LayerNorm2dFp32", "LayerNormExp2d")]
    + [f"{_TIMM}norm_act.{name}" for name in ("LayerNormAct2d", "LayerNormAct2dFp32")]
)
_EXTENDED = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)
_CALLED_A_NORM = re.compile("Norm(?!al|er|Free)")
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)

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
    "CELU": "elu",
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
    F.gelu: "gelu",
    F.mish: "mish",
    F.elu: "elu",
    F.celu: "elu",
    F.selu: "selu",
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
# CELU is ELU at alpha = 1.
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
    if isinstance(module, NormAct):
        return None
    if isinstance(module, torch.jit.ScriptModule):
        return _of_script_module(module)
    name = full_name(type(module))
    if name in _PIXEL_NORMS:
        return _kept("normalizes the channels of each position: another function than a norm over positions")
    if name in _LAYER_NORMS:
        return _kept("normalizes trailing dims, not channels in dim 1")
    if name not in _KNOWN:
        return _of_unknown_class(module)
    reason = _why_not_its_class_alone(module)
    if reason:
        return _kept(reason)
    channels = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
    assert isinstance(channels, int)
    return _with_own_activation(module, channels)


def full_name(kind: type) -> str:
    """A class's module and name."""
    return f"{kind.__module__}.{kind.__qualname__}"


def hooks_of(module: nn.Module) -> bool:
    """Whether more than its forward runs when the module is called."""
    return any(getattr(module, name, None) for name in _HOOKS)


def _kept(reason: str) -> NormDescription:
    return NormDescription(0, kept_because=reason)


def _why_not_its_class_alone(module: nn.Module) -> str:
    if hooks_of(module):
        return "has hooks, which another layer would not run as they are; remove them before the conversion"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    return ""


def _of_unknown_class(module: nn.Module) -> Optional[NormDescription]:
    name = type(module).__name__
    if isinstance(module, nn.modules.lazy.LazyModuleMixin):
        return _kept("its channels are not known before the first forward") if isinstance(module, _EXTENDED) else None
    if torch.nn.utils.parametrize.is_parametrized(module) and isinstance(module, _EXTENDED):
        return _kept("its parameters are parametrized; remove the parametrizations before the conversion")
    extended = next((kind for kind in _EXTENDED if isinstance(module, kind)), None)
    if extended is not None:
        base = next(c.__name__ for c in type(module).__mro__ if c.__module__.startswith(_TORCH))
        return _kept(f"{name} extends {base}, and what it adds is not known here")
    if not _CALLED_A_NORM.search(name) or isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
        return None
    if type(module).__module__ == "torch.nn.utils.parametrizations":
        return None
    # A block called ConvNormAct holds a norm, and one called NormFreeBlock convolutions: neither is a norm itself.
    inside = [child for child in module.modules() if child is not module]
    if any(_CALLED_A_NORM.search(type(child).__name__) for child in inside):
        return None
    if any(parameter.numel() != max(parameter.shape, default=1) for parameter in module.parameters()):
        return None
    return _kept(f"{name} is not a kind of norm that can be replaced")


def _of_script_module(module: torch.jit.ScriptModule) -> Optional[NormDescription]:
    name = str(module.original_name)
    if not _CALLED_A_NORM.search(name) or any(
        _CALLED_A_NORM.search(str(getattr(child, "original_name", ""))) for child in module.children()
    ):
        return None
    return _kept(f"{name} was compiled by torch.jit; convert the network before that")


def _with_own_activation(module: nn.Module, channels: int) -> NormDescription:
    children = dict(module.named_children())
    unknown = sorted(set(children) - {"act", "drop"})
    if unknown:
        return _kept(f"holds modules of unknown use: {', '.join(unknown)}")
    hooked = [name for name, child in children.items() if hooks_of(child)]
    if hooked:
        return _kept(f"its {hooked[0]} has hooks, which another layer would not run as they are; remove them before")
    activation = activation_of_module(children["act"]) if "act" in children else "identity"
    if activation is None:
        return NormDescription(channels, no_pair_because=f"activation {type(children['act']).__name__} is unknown")
    if "drop" in children and not is_pass_through(children["drop"]):
        return NormDescription(channels, activation, no_pair_because="active dropout between norm and activation")
    return NormDescription(channels, activation)


def is_pass_through(module: nn.Module) -> bool:
    """Whether a module hands its input on and does nothing else: an identity, or dropout with probability 0."""
    if hooks_of(module):
        return False
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p == 0
    return type(module).__name__ == "Identity"


def activation_of_module(module: nn.Module) -> Optional[str]:
    """Name of the activation that a module is, "identity" for none; None where it is unknown."""
    name = None if isinstance(module, torch.jit.ScriptModule) else _MODULES.get(type(module).__name__)
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
