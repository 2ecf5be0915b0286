"""What of a norm goes on in the layer that takes its place."""

from __future__ import annotations

from typing import List, Optional, Set, Tuple

from torch import nn

from normact.activations import Activation
from normact.factory import NormActFactory
from normact.given_activation import take_activation
from normact.norm_act import NormAct
from normact.norms import BatchNorm
from normact.recognize import NormDescription

# What torch's and timm's norms set themselves; the rest of a norm's attributes are what its users gave it.
_OF_A_NORM = frozenset(
    ["num_features", "num_channels", "num_groups", "eps", "momentum", "affine", "track_running_stats"]
    + ["process_group", "fast_norm", "_fast_norm"]
)


def why_kept(old: nn.Module, description: NormDescription, factory: NormActFactory) -> str:
    """Why a norm stays what it is; empty where a layer takes its place."""
    return description.kept_because or _why_statistics_do_not_carry(old, factory)


def _why_statistics_do_not_carry(old: nn.Module, factory: NormActFactory) -> str:
    """Why batch norm cannot become this package's batch norm; empty where it can, and for every other pair."""
    if not factory.uses_batch_norm or not isinstance(old, nn.modules.batchnorm._BatchNorm):
        return ""
    if old.running_mean is None or not old.track_running_stats:
        return "track_running_stats=False: it evaluates by the statistics of its batch, as no batch norm here does"
    if old.momentum is None:
        return "momentum=None: its running statistics are cumulative, as those of no batch norm here are"
    return ""


def why_not_taken(activation: Optional[Activation], channels: int, factory: NormActFactory) -> str:
    """Why an activation module cannot be part of a layer of this factory; empty where it can, and for a name."""
    if not isinstance(activation, nn.Module):
        return ""
    try:
        take_activation(activation, channels, by_quadrature=factory.proxy_method == "exact")
    except ValueError as error:
        return f"{type(activation).__name__}: {error}"
    return ""


def what_is_left_out(old: nn.Module) -> str:
    """Return what an instance norm did and a layer does not, since no one expects it; empty where there is nothing."""
    if isinstance(old, nn.modules.instancenorm._InstanceNorm) and old.running_mean is not None:
        return "evaluated by running statistics, the layer by each image's own"
    return ""


def carry_over(old: nn.Module, layer: NormAct, model: nn.Module, path: str) -> None:
    """Give a layer gamma, beta and batch statistics of a norm: the same tensors; its device, type, mode and marks.

    The layer's other parameters are frozen where the norm's are. A norm that holds no tensor has the device and type
    of the network's first parameter, and is frozen where the smallest module around it that has parameters is.

    Args:
        old: the norm.
        layer: takes its place.
        model: the network.
        path: of the norm in it.
    """
    own = [*old.parameters(), *(buffer for buffer in old.buffers() if buffer.is_floating_point())]
    like = next(iter([*own, *model.parameters()]), None)
    if like is not None:
        layer.to(device=like.device, dtype=like.dtype)
    if _is_frozen(old, model, path):
        layer.requires_grad_(False)
    for name in ("weight", "bias"):
        value = getattr(old, name, None)
        if value is not None and getattr(layer, name) is not None:
            setattr(layer, name, value)
    if isinstance(layer.norm, BatchNorm) and isinstance(old, nn.modules.batchnorm._BatchNorm):
        assert old.running_mean is not None and old.running_var is not None and old.momentum is not None
        layer.norm.running_mean, layer.norm.running_var = old.running_mean, old.running_var
        layer.norm.momentum = old.momentum
    layer.train(old.training)
    for name, attribute in vars(old).items():
        if name not in _OF_A_NORM and not hasattr(layer, name):
            setattr(layer, name, attribute)


def _is_frozen(old: nn.Module, model: nn.Module, path: str) -> bool:
    around: List[nn.Module] = [old]
    while path:
        path = path.rpartition(".")[0]
        around.append(model.get_submodule(path))
    for module in around:
        parameters = list(module.parameters())
        if parameters:
            return not any(parameter.requires_grad for parameter in parameters)
    return False


def new_parameters(model: nn.Module, before: Set[int]) -> Tuple[str, ...]:
    """Return names of the parameters whose ids are not among those of before."""
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) not in before)
