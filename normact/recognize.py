"""Recognize norms of networks made elsewhere, by their very classes.

Model libraries are not imported: a norm is known by its class's full name, since a class that extends a norm may do
more than that norm.
"""

from __future__ import annotations

import re
from typing import NamedTuple, Optional

import torch
import torch.fx
import torch.nn.utils.parametrize
from torch import nn

from normact.activations import Activation
from normact.known_activations import activation_of_module, hooks_of, is_activation
from normact.norm import Norm
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
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
_CALLED_A_NORM = re.compile("Norm(?!al|er|Free)")


class NormDescription(NamedTuple):
    """A norm found in a network.

    Args:
        channels: of the norm; 0 where it cannot be replaced.
        activation: the activation that the module itself holds, a name or a module; "identity" where it holds none.
        kept_because: why the norm cannot be replaced; empty where it can.
        no_pair_because: why its own activation cannot become part of the layer; empty where it can.
    """

    channels: int
    activation: Activation = "identity"
    kept_because: str = ""
    no_pair_because: str = ""


def describe_norm(module: nn.Module) -> Optional[NormDescription]:
    """Return what norm a module is; None for a module that is none, and for the layers here and their norms."""
    if isinstance(module, (NormAct, Norm)):
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
    """Return a class's module and name."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _kept(reason: str) -> NormDescription:
    return NormDescription(0, kept_because=reason)


def _why_not_its_class_alone(module: nn.Module) -> str:
    if hooks_of(module):
        return "has hooks, which another layer would not run as they are; remove them before the conversion"
    if any(getattr(module, name, None) for name in _STATE_HOOKS):
        return "has hooks of its state, which is not that of another layer; remove them before the conversion"
    unknown = sorted({*module._parameters, *module._buffers} - _TENSORS)
    if unknown:
        return f"holds tensors of unknown use: {', '.join(unknown)}"
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
        return _kept(f"{name} extends {base}, and what it adds is unknown")
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
    activation: Optional[Activation] = "identity"
    if "act" in children:
        activation = activation_of_module(children["act"])
        if activation is None and is_activation(children["act"]):
            activation = children["act"]
    if activation is None:
        reason = f"activation {type(children['act']).__name__} is unknown"
        return NormDescription(channels, "unknown", no_pair_because=reason)
    if "drop" in children and not is_pass_through(children["drop"]):
        return NormDescription(channels, activation, no_pair_because="active dropout between norm and activation")
    return NormDescription(channels, activation)


def is_dropout(module: nn.Module) -> bool:
    """Whether a module multiplies its input by random values that are not negative, or by 1."""
    return type(module) in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d) and not hooks_of(module)


def is_pass_through(module: nn.Module) -> bool:
    """Whether a module hands its input on and does nothing else: an identity, or dropout with probability 0."""
    if hooks_of(module):
        return False
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p == 0
    return type(module).__name__ == "Identity"
