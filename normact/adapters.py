"""The layer as other libraries call for one: what each function returns goes into that library's hook for norms.

`activation` has no default: a library that applies its activations itself must get None, a norm and its affine alone,
and has no Proxy Normalization then. For networks of such libraries convert_norm is the way to it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable, Dict, List, Optional, Tuple

from torch import nn

from normact.activations import GivenActivation
from normact.convert import ConversionReport, convert_norm
from normact.factory import NormActFactory
from normact.norm_act import NormAct


def for_torchvision(factory: NormActFactory, activation: Optional[GivenActivation]) -> Callable[[int], NormAct]:
    """`norm_layer` of torchvision's networks: resnet18(norm_layer=for_torchvision(norm_act, None)).

    These apply their activations themselves, ResNets some of them after an addition, so that None alone is right there.
    An activation is for Conv2dNormActivation(..., activation_layer=None) and modules of one's own.
    """
    return lambda channels: factory(channels, activation, bias=True)


def for_detectron2(factory: NormActFactory, activation: Optional[GivenActivation]) -> Callable[[int], NormAct]:
    """`norm` of detectron2's layers and blocks, where a function of channels may stand: get_norm(norm, channels).

    Its ResNets apply relu after what they get here: None alone is right there.
    """
    return lambda channels: factory(channels, activation, bias=True)


def for_timm(factory: NormActFactory, activation: Optional[GivenActivation]) -> Callable[..., NormAct]:
    """`norm_layer` of timm's networks that pair norm and activation: create_model(..., norm_layer=for_timm(f, "silu")).

    The signature is BatchNormAct2d's. timm does not hand a network's act_layer to such a function, so it is given here.

    Raises:
        ValueError: when called as for a norm alone, by networks that apply their activations themselves, unless
            `activation` is None; dropout between norm and activation; no affine; eps or momentum that the norm has not.
    """

    def norm_act(num_features: int, eps: Any = None, momentum: Any = None, affine: bool = True,
                 track_running_stats: bool = True, apply_act: Optional[bool] = None,
                 act_layer: Optional[GivenActivation] = None, act_kwargs: Optional[Dict[str, Any]] = None,
                 inplace: Optional[bool] = None, drop_layer: Any = None, device: Any = None,
                 dtype: Any = None) -> NormAct:  # fmt: skip
        if activation is not None and apply_act is None and inplace is None and act_layer is None:
            raise ValueError("called for a norm alone: the network applies its activations itself; convert it instead")
        if drop_layer is not None or not track_running_stats:
            raise ValueError("drop_layer and track_running_stats=False have no place in this layer; leave them out")
        phi = act_layer(**(act_kwargs or {})) if isinstance(act_layer, type) else act_layer or activation
        fields = {"eps": eps, "momentum": momentum}
        layer = _layer(factory, num_features, None if apply_act is False else phi, affine=affine, fields=fields)
        return layer.to(device=device, dtype=dtype)

    return norm_act


def for_monai(factory: NormActFactory, activation: Optional[GivenActivation]) -> Callable[[int], Any]:
    """Return a factory function of MONAI: Norm.add_factory_callable("gnpn", for_monai(norm_act, nn.PReLU)).

    Then UNet(..., norm="gnpn", act=None), since the layer holds the activation; dropout comes after it.
    """

    def norm_of(spatial_dims: int) -> Callable[..., NormAct]:
        def norm(num_features: int, eps: Optional[float] = None, affine: bool = True) -> NormAct:
            return _layer(factory, num_features, activation, affine=affine, fields={"eps": eps})

        return norm

    return norm_of


def for_nnunet(factory: NormActFactory, activation: Optional[GivenActivation]) -> Callable[..., NormAct]:
    """`norm_op` of nnU-Net's networks: PlainConvUNet(..., norm_op=for_nnunet(norm_act, nn.LeakyReLU), nonlin=None).

    Its residual networks add between norm and activation: build these as usual, and convert them.
    """

    def norm_op(channels: int, eps: Optional[float] = None, affine: bool = True) -> NormAct:
        return _layer(factory, channels, activation, affine=affine, fields={"eps": eps})

    return norm_op


def for_mmcv(factory: NormActFactory, activation: Optional[GivenActivation]) -> type:
    """Return a class for mmcv: MODELS.register_module(name="GNPN", module=for_mmcv(norm_act, "relu")).

    Then ConvModule(..., norm_cfg=dict(type="GNPN"), act_cfg=None). mmcv gives eps 1e-5 where the dict has none: a
    factory with another is refused, with what to write.
    """

    class Norm(nn.Module):
        _abbr_ = "norm_act"

        def __new__(cls, channels: int, eps: float) -> NormAct:  # type: ignore[misc]
            if eps != factory.eps:
                raise ValueError(f"eps={eps} is not the factory's; write norm_cfg=dict(type=..., eps={factory.eps})")
            return factory(channels, activation, bias=True)

    return Norm


def for_opacus(model: nn.Module, factory: NormActFactory) -> Tuple[nn.Module, ConversionReport]:
    """Prepare a network for Opacus' PrivacyEngine: convert_norm(model, factory, out_of_place=True), one name a module.

    Opacus puts hooks on a module once for each of its names, and would count its gradients as often; nnU-Net's blocks
    name each of theirs twice. The other names stay attributes, but leave state_dict and modules().
    """
    model, report = convert_norm(model, factory, out_of_place=True)
    places: Dict[nn.Module, List[Tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places.setdefault(child, []).append((parent, name))
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    for child, names in places.items():
        # A container finds its modules by their names; elsewhere they are attributes.
        for parent, name in sorted(names, key=lambda place: not isinstance(place[0], containers))[1:]:
            if not isinstance(parent, containers):
                del parent._modules[name]
                parent.__dict__[name] = child
    return model, report


def _layer(factory: NormActFactory, channels: int, activation: Any, *, affine: bool, fields: Dict[str, Any]) -> NormAct:
    """Return a layer by the factory, in which the fields that a library passes replace the factory's."""
    if not affine:
        raise ValueError("affine=False: a norm+activation layer has a scale and a shift; leave affine out")
    given = {name: value for name, value in fields.items() if value is not None}
    return replace(factory, **given)(channels, activation, bias=True)
