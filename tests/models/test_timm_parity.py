"""The networks against timm's and torchvision's: equal outputs from equal weights, and refused state dicts."""

from typing import Any, Dict, Optional, Tuple

import pytest
import timm
import torch
import torchvision
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet as TimmEfficientNet
from timm.models.resnetv2 import BatchNormAct2d, ResNetV2, create_conv2d
from torch import nn

from models import build_model
from models.efficientnet import EFFICIENTNET_SHAPES, EfficientNet
from models.foreign_names import foreign_eps
from models.pretrained import OURS, load_pretrained
from models.resnet import ResNet, ResNetShape
from normact import NormActFactory

Pair = Tuple[EfficientNet, Dict[str, torch.Tensor]]

BATCH_NORM = NormActFactory(norm="batch", proxy=False, eps=1e-5)


def draw_norms(model: nn.Module) -> None:
    """Give norms and biases values of their own, since the initial 0 and 1 would hide a wrong place."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dim() == 1:
            low, high = (0.5, 1.5) if name.endswith(("running_var", "weight")) else (-0.2, 0.2)
            tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))


def assert_equal_outputs(model: nn.Module, timm_model: nn.Module, size: int) -> None:
    draw_norms(timm_model)
    assert load_pretrained(model, timm_model.state_dict()) == timm_model.__class__.__module__.split(".")[0]
    x = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model.double().eval()
    timm_model.double().eval()
    with torch.no_grad():
        expected = timm_model(x)
        assert expected.std() > 0.1  # the outputs say something
        # float64: 1e-9 leaves six digits for the order of sums, and is far under the 1e-5 that float32 would allow
        torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "name, timm_name, size",
    [
        ("resnet50", "resnetv2_50", 65),
        ("resnet101", "resnetv2_101", 64),
        ("efficientnet_b0", "efficientnet_b0", 97),
        ("efficientnet_b1", "efficientnet_b1", 64),
        ("efficientnet_b2", "efficientnet_b2", 64),
        ("efficientnet_b3", "efficientnet_b3", 64),
        ("efficientnet_b4", "efficientnet_b4", 64),
        ("efficientnet_b5", "efficientnet_b5", 64),
    ],
)
def test_network_equals_timms_of_the_same_architecture(name: str, timm_name: str, size: int) -> None:
    model = build_model(name, num_classes=11, norm_act=BATCH_NORM)
    assert_equal_outputs(model, timm.create_model(timm_name, num_classes=11), size)


def test_resnext_equals_timms_resnet_v2_with_grouped_convolutions() -> None:
    timm_model = ResNetV2(
        [3, 4, 6, 3], num_classes=11, bottle_ratio=0.5, norm_layer=BatchNormAct2d, conv_layer=create_conv2d
    )
    stages: Any = timm_model.stages
    for block in (block for stage in stages for block in stage.blocks):
        dense = block.conv2
        block.conv2 = nn.Conv2d(
            dense.in_channels, dense.out_channels, 3, stride=dense.stride, padding=1, groups=32, bias=False
        )
    assert_equal_outputs(build_model("resnext50_32x4d", num_classes=11, norm_act=BATCH_NORM), timm_model, 64)


def test_small_resnet_equals_timms_basic_blocks_behind_a_stem_for_small_images() -> None:
    timm_model = ResNetV2(
        [3, 3, 3],
        channels=(16, 32, 64),
        stem_chs=16,
        basic=True,
        bottle_ratio=1.0,
        num_classes=11,
        norm_layer=BatchNormAct2d,
        conv_layer=create_conv2d,
    )
    timm_model.stem = nn.Sequential()
    timm_model.stem.add_module("conv", nn.Conv2d(3, 16, 3, padding=1, bias=False))
    assert_equal_outputs(build_model("resnet20", num_classes=11, norm_act=BATCH_NORM), timm_model, 32)


def small_timm_efficientnet(expansion: int, group_size: Optional[int]) -> nn.Module:
    """Return the stages of efficientnet_small in timm's own notation."""
    stages = [["ds_r1_k3_s1_e1_c16_se0.25"], [f"ir_r2_k3_s2_e{expansion}_c24_se0.25"]]
    stages += [[f"ir_r3_k5_s2_e{expansion}_c48_se0.25"]]
    model = TimmEfficientNet(
        decode_arch_def(stages, group_size=group_size),
        num_classes=11,
        num_features=256,
        stem_size=16,
        round_chs_fn=round_channels,
        act_layer=nn.SiLU,
    )
    model.conv_stem.stride = (1, 1)
    return model


@pytest.mark.parametrize(
    "name, expansion, group_size", [("efficientnet_small", 6, None), ("efficientnet_small_g16", 4, 16)]
)
def test_small_efficientnets_equal_timms_builder_with_and_without_groups(
    name: str, expansion: int, group_size: Optional[int]
) -> None:
    model = build_model(name, num_classes=11, norm_act=BATCH_NORM)
    assert_equal_outputs(model, small_timm_efficientnet(expansion, group_size), 33)


# ---- refused state dicts ----


@pytest.fixture
def small_pair() -> Pair:
    shape, _ = EFFICIENTNET_SHAPES["efficientnet_small"]
    model = EfficientNet(shape, num_classes=11, norm_act=BATCH_NORM, in_channels=3)
    return model, small_timm_efficientnet(6, None).state_dict()


def test_differences_are_listed_together_and_nothing_is_loaded(
    small_pair: Pair,
) -> None:
    model, state_dict = small_pair
    del state_dict["bn1.running_var"]
    state_dict["blocks.9.0.conv_pw.weight"] = torch.zeros(1)
    state_dict["classifier.bias"] = torch.zeros(12)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_pretrained(model, state_dict)
    message = str(error.value)
    assert "1 missing: bn1.running_var" in message
    assert "1 unexpected: blocks.9.0.conv_pw.weight" in message
    assert "1 of another shape: classifier.bias (12,), here classifier.bias (11,)" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_only_counters_of_norms_that_exist_are_left_out(
    small_pair: Pair,
) -> None:
    model, state_dict = small_pair
    assert "bn1.num_batches_tracked" in state_dict
    load_pretrained(model, state_dict)
    state_dict["bn7.num_batches_tracked"] = torch.zeros(())
    with pytest.raises(ValueError, match=r"1 unexpected: bn7.num_batches_tracked"):
        load_pretrained(model, state_dict)


def test_long_lists_are_cut_and_counted(small_pair: Pair) -> None:
    model, _ = small_pair
    names = list(model.state_dict())
    last_ones = {name: model.state_dict()[name] for name in names[len(names) // 3 :]}
    with pytest.raises(ValueError, match=r"missing: stem.conv.weight, stem.norm.weight, .*, \.\.\.\. Use"):
        load_pretrained(model, last_ones)


def test_an_empty_state_dict_is_called_empty(small_pair: Pair) -> None:
    with pytest.raises(ValueError, match=r"nothing was loaded\. It is empty\. Known are"):
        load_pretrained(small_pair[0], {})


def test_a_network_with_proxy_norm_does_not_take_batch_norm_weights(
    small_pair: Pair,
) -> None:
    _, state_dict = small_pair
    model = build_model("efficientnet_small", num_classes=11, norm_act=NormActFactory(norm="batch", proxy=True))
    with pytest.raises(ValueError, match=r"missing: .*bn1.proxy_beta"):
        load_pretrained(model, state_dict)


def test_deep_stem_variant_is_refused() -> None:
    shape = ResNetShape((3, 4, 6, 3), width=64, bottleneck=True, large_images=True, group_width=64)
    with torch.device("meta"):
        model = ResNet(shape, num_classes=1000, norm_act=BATCH_NORM, in_channels=3)
        timm_model = timm.create_model("resnetv2_50d")
    with pytest.raises(ValueError, match=r"missing: stem.conv.weight.*unexpected: stem.conv1.weight"):
        load_pretrained(model, timm_model.state_dict())


def test_a_classifier_of_other_classes_is_refused_unless_it_is_reset(small_pair: Pair) -> None:
    _, state_dict = small_pair
    model = build_model("efficientnet_small", num_classes=7, norm_act=BATCH_NORM)
    with pytest.raises(ValueError, match=r"2 of another shape: classifier\.weight.* set reset_classifier"):
        load_pretrained(model, state_dict)
    drawn = model.classifier.weight.clone()
    load_pretrained(model, state_dict, reset_classifier=True)
    assert torch.equal(model.classifier.weight, drawn)
    assert torch.equal(model.stem.conv.weight, state_dict["conv_stem.weight"])


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b2", "efficientnet_b5"])
def test_efficientnet_equals_torchvisions(name: str) -> None:
    torchvision_model = getattr(torchvision.models, name)(num_classes=11)
    eps = {module.eps for module in torchvision_model.modules() if isinstance(module, nn.BatchNorm2d)}
    model = build_model(name, num_classes=11, norm_act=NormActFactory(norm="batch", proxy=False, eps=max(eps)))
    assert eps == {foreign_eps(model, "torchvision")}
    assert_equal_outputs(model, torchvision_model, 64)


def test_weights_of_the_same_network_here_are_taken_by_their_own_names(small_pair: Pair) -> None:
    model, _ = small_pair
    other = build_model("efficientnet_small", num_classes=11, norm_act=BATCH_NORM)
    assert load_pretrained(other, model.state_dict()) == OURS
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())


def test_torchvisions_residual_network_in_v1_order_is_refused() -> None:
    with torch.device("meta"):
        model = build_model("resnet50", num_classes=1000, norm_act=BATCH_NORM)
        state_dict = torchvision.models.resnet50().state_dict()
    with pytest.raises(
        ValueError, match=r"nothing was loaded\. .*They look like a ResNet of torchvision or timm in v1 order"
    ):
        load_pretrained(model, state_dict)
