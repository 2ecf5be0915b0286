"""The layer in other libraries' hooks for norms: by the libraries themselves, where they are installed."""

from typing import Any

import pytest
import torch
from torch import nn

from normact import NormAct, NormActFactory
from normact.adapters import for_detectron2, for_mmcv, for_monai, for_nnunet, for_timm, for_torchvision

NORM_ACT = NormActFactory(norm="group", max_groups=4)


def layers(model: nn.Module) -> "dict[str, NormAct]":
    return {name: module for name, module in model.named_modules() if isinstance(module, NormAct)}


def trains(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    out = model(x)
    out.square().mean().backward()
    assert out.isfinite().all()
    for layer in layers(model).values():
        assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    return out


def test_torchvision_gets_norms_alone_where_it_applies_the_activations_itself() -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(norm_layer=for_torchvision(NORM_ACT, None), num_classes=5)
    assert len(layers(model)) == 20
    assert all(layer.activation is None and layer.bias is not None for layer in layers(model).values())
    same = torchvision.models.resnet18(norm_layer=lambda channels: nn.GroupNorm(4, channels), num_classes=5)
    same.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(trains(model, x), same(x), rtol=1e-3, atol=1e-4)


def test_torchvisions_block_takes_norm_and_activation_as_one() -> None:
    misc = pytest.importorskip("torchvision.ops.misc")
    block = misc.Conv2dNormActivation(3, 8, norm_layer=for_torchvision(NORM_ACT, "relu"), activation_layer=None)
    assert [layer.activation for layer in layers(block).values()] == ["relu"] and len(block) == 2
    trains(block, torch.randn(2, 3, 8, 8))


def test_timms_efficientnet_has_pn_everywhere_but_at_its_projections() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("efficientnet_b0", norm_layer=for_timm(NORM_ACT, "silu"), num_classes=5)
    found = layers(model)
    projections = {name for name in found if name.endswith("bn3") or (name.startswith("blocks.0") and "bn2" in name)}
    assert len(found) == 49 and len(projections) == 16
    assert {name for name, layer in found.items() if layer.activation is None} == projections
    assert {layer.activation for name, layer in found.items() if name not in projections} == {"silu"}
    trains(model, torch.randn(2, 3, 32, 32))


def test_timms_signature_is_taken_whole() -> None:
    timm = pytest.importorskip("timm")
    make = for_timm(NORM_ACT, "silu")
    assert make(8, apply_act=False).activation is None
    assert make(8, act_layer=nn.LeakyReLU, act_kwargs={"negative_slope": 0.2}).activation == "leaky_relu(0.2)"
    layer = make(8, eps=1e-3, inplace=True, dtype=torch.float64, device="cpu")
    assert layer.norm.groups().eps == 1e-3 and layer.weight.dtype == torch.float64
    block = timm.layers.ConvNormAct(3, 8, norm_layer=make, act_layer=nn.SiLU)
    assert [layer.activation for layer in layers(block).values()] == ["silu"]
    with pytest.raises(ValueError, match=r"momentum=0\.1 has no effect with norm 'group'"):
        make(8, momentum=0.1, inplace=True)
    assert for_timm(NormActFactory(norm="batch"), "relu")(8, momentum=0.3, inplace=True).norm.momentum == 0.3
    for options in ({"drop_layer": nn.Dropout}, {"track_running_stats": False}, {"affine": False}):
        with pytest.raises(ValueError, match="leave"):
            make(8, inplace=True, **options)


def test_timms_resnets_which_apply_activations_themselves_are_refused_a_layer_with_one() -> None:
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match="applies its activations itself"):
        timm.create_model("resnet18", norm_layer=for_timm(NORM_ACT, "relu"))
    model = timm.create_model("resnet18", norm_layer=for_timm(NORM_ACT, None), num_classes=5)
    assert {layer.activation for layer in layers(model).values()} == {None}


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_monais_unet_has_pn_in_every_block(spatial_dims: int) -> None:
    networks = pytest.importorskip("monai.networks")
    norms = networks.layers.Norm
    if "GNPN" not in norms.names:
        norms.add_factory_callable("gnpn", for_monai(NORM_ACT, nn.PReLU))
    settings: Any = {"spatial_dims": spatial_dims, "in_channels": 1, "out_channels": 2, "channels": (4, 8, 16)}
    settings.update(strides=(2, 2), num_res_units=2)
    model = networks.nets.UNet(**settings, norm="gnpn", act=None)
    usual = networks.nets.UNet(**settings, norm="instance")
    activations = [module for module in usual.modules() if isinstance(module, nn.PReLU)]
    assert len(layers(model)) == len(activations) > 5
    assert {layer.activation for layer in layers(model).values()} == {"PReLU"}
    trains(model, torch.randn(2, 1, *[16] * spatial_dims))


def test_nnunets_plain_network_has_pn_in_every_block() -> None:
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")
    settings: Any = {"input_channels": 1, "n_stages": 3, "features_per_stage": (4, 8, 16), "conv_op": nn.Conv3d}
    settings.update(kernel_sizes=3, strides=(1, 2, 2), n_conv_per_stage=2, num_classes=2, n_conv_per_stage_decoder=2)
    norm = for_nnunet(NORM_ACT, nn.LeakyReLU)
    model = unet.PlainConvUNet(**settings, norm_op=norm, norm_op_kwargs={"eps": 1e-4, "affine": True}, nonlin=None)
    assert len(layers(model)) == 10
    for layer in layers(model).values():
        assert layer.activation == "leaky_relu(0.01)" and layer.norm.groups().eps == 1e-4
    trains(model, torch.randn(2, 1, 8, 8, 8))


def test_mmcvs_block_takes_norm_and_activation_as_one() -> None:
    bricks = pytest.importorskip("mmcv.cnn.bricks")
    registry = pytest.importorskip("mmengine.registry")
    registry.MODELS.register_module(name="GNPN", module=for_mmcv(NORM_ACT, "relu"), force=True)
    block = bricks.ConvModule(3, 8, 3, norm_cfg={"type": "GNPN"}, act_cfg=None)
    assert [layer.activation for layer in layers(block).values()] == ["relu"] and type(block.norm) is NormAct
    trains(block, torch.randn(2, 3, 8, 8))


def test_mmcvs_protocol_is_a_class_called_with_channels_and_eps() -> None:
    """mmcv.cnn.build_norm_layer: a class, whose instances it freezes by their parameters."""
    norm = for_mmcv(NormActFactory(eps=1e-3), "relu")
    assert isinstance(norm, type) and norm._abbr_ == "norm_act"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"write norm_cfg=dict\(type=..., eps=0.001\)"):
        norm(8, eps=1e-5)
    assert type(norm(8, eps=1e-3)) is NormAct


def test_detectron2s_protocol_is_a_function_of_channels() -> None:
    """detectron2.layers.get_norm(norm, channels) returns norm(channels) for a callable; blocks apply relu_ to it."""
    norm = for_detectron2(NORM_ACT, None)
    x = torch.randn(2, 8, 5, 5)
    layer = norm(8)
    assert layer.activation is None and layer.bias is not None
    torch.nn.functional.relu_(layer(x)).sum().backward()
    pytest.importorskip(
        "detectron2", reason="not on package registries; get_norm itself is tried where it is installed"
    )
    assert type(__import__("detectron2.layers", fromlist=["get_norm"]).get_norm(norm, 8)) is NormAct
