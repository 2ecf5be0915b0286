"""All networks: exact sizes, shapes, gradients, initialization, options and errors."""

import ast
import math
import runpy
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
import torch
from torch import nn

import models
from models import NETWORKS, ImageClassifier, build_model
from models.efficientnet import SqueezeExcite
from models.resnet import ResNet, ResNetShape
from normact import NormAct, NormActFactory

BATCH_NORM = NormActFactory(norm="batch", proxy=False)
PROXY_NORM = NormActFactory(norm="group", proxy=True, num_groups=4)

# Trainable parameters with batch norm; 10 classes for images of 32 pixels, else 1000.
#
# resnet8: stem 27*16; block 1: 2*9*16*16 + 2*(16+16); block 2: 9*16*32 + 9*32*32 + 16*32 + 2*(16+32); block 3:
#   9*32*64 + 9*64*64 + 32*64 + 2*(32+64); last norm 2*64; classifier 65*10. Each further block of the three stages adds
#   2*9*c*c + 4*c for c = 16, 32, 64, together 97,216. resnet10 has a fourth stage: 9*64*128 + 9*128*128 + 64*128 +
#   2*(64+128); last norm 2*128 and classifier 129*10, where resnet8 has 2*64 and 65*10.
# resnet50, resnet101: as timm's resnetv2_50 and resnetv2_101 (test_timm_parity.py compares the tensors one by one).
# ResNeXts: the published v1 networks have 25,028,904 and 44,177,704. From v1 to v2 only norms move. v1 has norm
#   channels 64 (stem) + the sums over blocks of (2 mid + out) + 256 + 512 + 1024 + 2048 (projections), v2 has the sums
#   of (in + 2 mid) + 2048 (last). The sum of out - in is 2048 - 64, so v2 has 3,840 channels or 7,680 parameters fewer.
# resnext20_8x4d: a block of in, mid and out channels has in*mid + 9*mid*mid/8 + mid*out + 2*(in + 2*mid), and the first
#   of each stage in*out more; with mid 32, 64, 128: 4,896 + 5,504 + 25,472 + 21,504 + 101,120 + 84,992 = 243,488. Stem
#   27*16, last norm 2*256, classifier 257*10.
# EfficientNets at 1000 classes: the published counts. efficientnet_small: e is expansion * in, r is in / 4;
#   a block has in*e (if expanded) + e*k*k*e/groups + e*out + 2*e*r + e + r + 2*(e (if expanded) + e + out).
PARAMETERS = {
    "resnet8": 77_850,
    "resnet10": 77_850 + 229_760 + 2 * 64 + 640,
    "resnet20": 77_850 + 2 * 97_216,
    "resnet32": 77_850 + 4 * 97_216,
    "resnet44": 77_850 + 6 * 97_216,
    "resnet56": 77_850 + 8 * 97_216,
    "resnet50": 25_549_352,
    "resnet101": 44_541_480,
    "resnext20_8x4d": 243_488 + 27 * 16 + 2 * 256 + 257 * 10,
    "resnext50_32x4d": 25_028_904 - 7_680,
    "resnext101_32x4d": 44_177_704 - 7_680,
    "efficientnet_b0": 5_288_548,
    "efficientnet_b1": 7_794_184,
    "efficientnet_b2": 9_109_994,
    "efficientnet_b3": 12_233_232,
    "efficientnet_b4": 19_341_616,
    "efficientnet_b5": 30_389_784,
    "efficientnet_small": 136_294,
    "efficientnet_b0_g16": 5_913_796,
    "efficientnet_b1_g16": 8_332_120,
    "efficientnet_b2_g16": 9_504_122,
    "efficientnet_b3_g16": 12_590_896,
    "efficientnet_b4_g16": 19_328_168,
    "efficientnet_b5_g16": 28_715_320,
    "efficientnet_small_g16": 300_246,
}


def build_on_meta(name: str, norm_act: NormActFactory) -> ImageClassifier:
    num_classes = 1000 if NETWORKS[name].image_size >= 224 else 10
    with torch.device("meta"):
        return build_model(name, num_classes=num_classes, norm_act=norm_act)


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def build_small(name: str, norm_act: NormActFactory = PROXY_NORM, **options: Any) -> ImageClassifier:
    torch.manual_seed(0)
    if name == "small resnext":
        shape = ResNetShape((1, 2), width=8, bottleneck=True, conv_groups=4, group_width=4)
        return ResNet(shape, num_classes=5, norm_act=norm_act, in_channels=3)
    return build_model(name, num_classes=5, norm_act=norm_act, **options)


SMALL = ["resnet8", "small resnext", "efficientnet_small", "efficientnet_small_g16"]


# ---- sizes ----


def test_every_network_has_a_row_in_the_table_of_parameter_counts() -> None:
    assert set(PARAMETERS) == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_count_is_exact(name: str) -> None:
    assert count_parameters(build_on_meta(name, BATCH_NORM)) == PARAMETERS[name]


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("efficientnet_b0", 5_325_140),
        ("efficientnet_b0_g16", 5_938_484),
        ("efficientnet_b2", 9_169_090),
        ("efficientnet_b2_g16", 9_543_570),
    ],
)
def test_proxy_norm_affine_form_gives_the_published_parameter_counts(name: str, parameters: int) -> None:
    assert count_parameters(build_on_meta(name, PROXY_NORM)) == parameters


@pytest.mark.parametrize("name", ["efficientnet_small", "efficientnet_small_g16"])
def test_small_efficientnets_have_between_a_tenth_and_four_tenths_of_a_million_parameters(name: str) -> None:
    assert 100_000 <= PARAMETERS[name] <= 400_000


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_build_and_run_on_the_meta_device_at_their_native_size(name: str) -> None:
    model = build_on_meta(name, PROXY_NORM)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    size = NETWORKS[name].image_size
    assert model(torch.zeros(2, 3, size, size, device="meta")).shape == (2, model.num_classes)


# ---- shapes and the head ----


@pytest.mark.parametrize("name, width", [("resnet8", 64), ("efficientnet_small", 256), ("efficientnet_small_g16", 256)])
def test_features_of_a_32_pixel_image_are_the_last_map_before_pooling(name: str, width: int) -> None:
    model = build_small(name)
    features = model.forward_features(torch.randn(2, 3, 32, 32))
    assert features.shape == (2, width, 8, 8) and model.num_features == width


def test_stages_halve_the_image_as_published() -> None:
    x = torch.zeros(1, 3, 224, 224, device="meta")
    sizes: Dict[str, List[Tuple[int, int]]] = {}
    for name in ("resnet50", "efficientnet_b0"):
        model = build_on_meta(name, PROXY_NORM)
        sizes[name] = []
        y = model.stem(x)
        for stage in model.stages:
            y = stage(y)
            sizes[name].append((y.shape[1], y.shape[2]))
    assert sizes["resnet50"] == [(256, 56), (512, 28), (1024, 14), (2048, 7)]
    assert sizes["efficientnet_b0"] == [(16, 112), (24, 56), (40, 28), (80, 14), (112, 14), (192, 7), (320, 7)]


@pytest.mark.parametrize("size", [(28, 28), (31, 33)])
@pytest.mark.parametrize("name", ["resnet8", "efficientnet_small", "efficientnet_small_g16"])
def test_images_of_other_sizes_and_channels_are_accepted(name: str, size: Tuple[int, int]) -> None:
    assert build_small(name, in_channels=1)(torch.randn(2, 1, *size)).shape == (2, 5)


@pytest.mark.parametrize("name", SMALL)
def test_forward_is_the_classifier_of_the_pooled_features(name: str) -> None:
    model = build_small(name).eval()
    assert isinstance(model.classifier, nn.Linear)
    x = torch.randn(2, 3, 32, 32)
    pooled = model.forward_features(x).flatten(2).mean(2)
    expected = pooled @ model.classifier.weight.t() + model.classifier.bias
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)  # float32 sums of 64 to 256 terms
    torch.testing.assert_close(model.forward_head(model.forward_features(x)), model(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", SMALL)
def test_reset_classifier_changes_the_number_of_classes_and_keeps_type_and_features(name: str) -> None:
    model = build_small(name).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    features = model.forward_features(x)
    model.reset_classifier(7)
    assert model.get_classifier() is model.classifier
    assert model.num_classes == 7 and model(x).shape == (2, 7)
    assert model.classifier.weight.dtype == torch.float64
    torch.testing.assert_close(model.forward_features(x), features, rtol=0, atol=0)
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), features.mean((2, 3)), rtol=0, atol=0)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)


def test_width_sets_the_stem_and_scales_the_stages() -> None:
    stages: Any = build_small("resnet8", width=8).stages
    assert [stage[-1].conv2.out_channels for stage in stages] == [8, 16, 32]
    assert stages[0][0].conv1.in_channels == 8


def test_no_network_names_a_norm() -> None:
    named = {name for name in (*dir(nn), *dir(nn.functional)) if "norm" in name.lower()}
    named -= {"normalize", "parametrizations"}
    assert {"BatchNorm2d", "GroupNorm", "group_norm", "LayerNorm"} <= named  # the check looks for something
    files = sorted(Path(models.__file__).parent.glob("*.py"))
    assert len(files) >= 6
    for file in files:
        node: Any
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            words = [getattr(node, "attr", None), getattr(node, "id", None)]
            words += [alias.name for alias in getattr(node, "names", []) if isinstance(alias, ast.alias)]
            assert not named.intersection(word for word in words if word), f"{file.name}:{node.lineno} names a norm"


# ---- learning ----


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "norm_act", [NormActFactory("batch", True), PROXY_NORM, NormActFactory("group+ws", True)], ids=lambda f: f.norm
)
def test_gradient_reaches_every_parameter(name: str, norm_act: NormActFactory) -> None:
    model = build_small(name, norm_act)
    loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    without = [
        key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert without == []


@pytest.mark.parametrize("name", SMALL)
def test_output_with_group_norm_does_not_depend_on_other_images(name: str) -> None:
    model = build_small(name)
    x = torch.randn(3, 3, 32, 32)
    # float32: convolutions of other batch sizes may sum in another order
    torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-5)


def expected_std(module_name: str, weight: torch.Tensor, family: str) -> float:
    if family == "resnet":
        return math.sqrt(1 / weight[0].numel())
    if module_name == "classifier":
        return math.sqrt(2 / (weight.shape[0] + weight.shape[1]))
    if ".conv2" in module_name:  # depthwise or in groups
        return math.sqrt(2 / weight[0].numel())
    return math.sqrt(2 / (weight.shape[0] * weight[0, 0].numel()))


@pytest.mark.parametrize("name", ["resnet20", "small resnext", "efficientnet_small", "efficientnet_small_g16"])
def test_initial_weights_have_the_documented_spread_and_biases_are_zero(name: str) -> None:
    model = build_small(name)
    family = "efficientnet" if name.startswith("efficientnet") else "resnet"
    for module_name, module in model.named_modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        weight, std = module.weight.detach(), expected_std(module_name, module.weight, family)
        # The sample deviation of n values scatters by std / sqrt(2 n); a cut normal by less.
        assert abs(weight.std(unbiased=False) - std) < 5 * std / math.sqrt(2 * weight.numel()), module_name
        if module_name != "classifier":
            assert weight.abs().max() <= 2 * std / 0.8796
        assert module.bias is None or not module.bias.any()


def test_without_drop_rates_training_draws_no_random_numbers() -> None:
    for name in SMALL:
        model = build_small(name).train()
        before = torch.get_rng_state()
        model(torch.zeros(1, 3, 32, 32))
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore")  # a trace warns of every shape that it fixes
@pytest.mark.parametrize("name", ["resnet8", "efficientnet_small"])
def test_networks_can_be_traced_in_training(name: str) -> None:
    options: Dict[str, Any] = {"drop_rate": 0.2, "drop_path_rate": 0.2} if name == "efficientnet_small" else {}
    model = build_small(name, **options).train()
    traced = torch.jit.trace(model, torch.randn(2, 3, 32, 32), check_trace=False)
    assert traced(torch.randn(2, 3, 32, 32)).shape == (2, 5)


# ---- options and errors ----


def test_unknown_network_is_answered_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"unknown network 'resnet55'.*resnet56"):
        build_model("resnet55", num_classes=10, norm_act=PROXY_NORM)


@pytest.mark.parametrize(
    "name, option, value",
    [
        ("resnet50", "width", 32),
        ("efficientnet_b0", "width", 32),
        ("resnet20", "drop_rate", 0.2),
        ("resnext50_32x4d", "drop_path_rate", 0.1),
    ],
)
def test_an_option_without_a_use_is_refused(name: str, option: str, value: float) -> None:
    arguments: Dict[str, Any] = {option: value}
    with pytest.raises(ValueError, match=f"{name} has no {option} \\(received {value}\\)"):
        build_model(name, num_classes=10, norm_act=PROXY_NORM, **arguments)


@pytest.mark.parametrize(
    "option, value",
    [("drop_rate", 1.0), ("drop_rate", -0.1), ("drop_path_rate", 1.5), ("num_classes", -1), ("in_channels", 0)],
)
def test_a_value_out_of_range_is_refused(option: str, value: float) -> None:
    arguments: Dict[str, Any] = {"num_classes": 10, "norm_act": PROXY_NORM, option: value}
    with pytest.raises(ValueError, match=f"{option} {value} is"):
        build_model("efficientnet_small", **arguments)


def test_hub_lists_every_network_and_builds_one_with_a_norm_of_choice() -> None:
    repository = Path(models.__file__).parents[1]
    namespace = runpy.run_path(str(repository / "hubconf.py"))
    listed = {name for name, value in namespace.items() if callable(value) and not name.startswith("_")}
    assert listed == set(NETWORKS)  # torch.hub.list shows the callables without a leading underscore
    model = torch.hub.load(
        str(repository), "resnet8", source="local", num_classes=4, width=8, norm="batch", proxy=False
    )
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 4)
    assert any("running_mean" in key for key in model.state_dict())


@pytest.mark.parametrize("name", ["resnet8", "small resnext", "efficientnet_small", "efficientnet_small_g16"])
def test_the_activation_can_be_chosen_and_is_the_networks_own_by_default(name: str) -> None:
    own = "silu" if name.startswith("efficientnet") else "relu"
    x = torch.randn(2, 3, 16, 16)
    default = build_small(name).eval()
    assert default.activation == own
    assert {module.activation for module in default.modules() if isinstance(module, NormAct)} <= {own, None}
    if name == "small resnext":
        return
    same, other = (build_small(name, activation=activation).eval() for activation in (own, "gelu"))
    assert torch.equal(same(x), default(x)) and not torch.allclose(other(x), default(x), rtol=1e-2)
    assert other.state_dict().keys() == default.state_dict().keys()
    activations = [module.activation for module in other.modules() if isinstance(module, NormAct)]
    assert other.activation == "gelu" and "gelu" in activations and set(activations) <= {"gelu", None}


def test_squeeze_excite_computes_with_the_networks_activation() -> None:
    part = SqueezeExcite(2, 1, "relu")
    with torch.no_grad():
        for convolution, weight in ((part.reduce, -1.0), (part.expand, 3.0)):
            convolution.weight.fill_(weight)
            convolution.bias.zero_()
    x = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(part(x), x / 2)  # relu(-3) = 0, sigmoid(0) = 1/2; silu(-3) would give another gate


def test_an_unknown_activation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown activation 'gellu'; known: "):
        build_small("resnet8", activation="gellu")
