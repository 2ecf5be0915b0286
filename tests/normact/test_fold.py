"""fold_for_inference: the folded network is the same function, and its constants are where the report says."""

import copy
from typing import Any, Dict, List, Tuple

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import normact.norm_act
from datasets.images.torchvision_import import torchvision
from models import NETWORKS, build_model
from normact import NormAct, NormActFactory, convert_norm
from normact.factory import norm_names
from normact.fold import fold_for_inference
from normact.fold.layers import BorderedConv2d, ChannelAffine, FoldedNormAct, folded_conv
from normact.fold.report import FoldReport

# Rounding of some twenty layers in float32; one layer loses about 1e-7.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def randomize(model: nn.Module) -> nn.Module:
    """Move every per-channel parameter and running statistic away from its initial value, and go to evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for name, values in model.state_dict().items():
        if values.dim() == 1:
            low = 0.5 if name.endswith(("weight", "running_var", ".v")) else -0.5
            values.copy_(low + torch.rand(values.shape, generator=generator, dtype=values.dtype))
    return model.eval()


def relative_error(model: nn.Module, folded: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected = model(x)
        assert expected.std() > 0
        return ((folded(x) - expected).norm() / expected.norm()).item()


def factory(norm: str, **options: Any) -> NormActFactory:
    groups: Dict[str, Any] = {"num_groups": 4} if norm.startswith(("group", "evonorm")) else {}
    return NormActFactory(norm=norm, **groups, **options)


def small_network(name: str, norm_act: NormActFactory, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    width = 4 if "width" in NETWORKS[name].options else None
    return randomize(build_model(name, num_classes=5, norm_act=norm_act, width=width).to(dtype))


# ---- by hand


def layer_of_two_and_three() -> NormAct:
    """Build one channel: z = 2 x + 3 and no activation."""
    layer = NormActFactory(norm="batch", eps=0.0, proxy_eps=5.0)(1, "identity")
    layer.load_state_dict({"weight": torch.tensor([2.0]), "bias": torch.tensor([3.0])}, strict=False)
    return layer


def test_one_padded_convolution_after_proxy_normalization_has_the_weights_computed_by_hand() -> None:
    # m = 3, variance 4, r = 1 / sqrt(4 + 5) = 1/3: PN gives (z - 3) / 3 = 2 x / 3.
    conv = nn.Conv2d(1, 1, 3, padding=1)
    network = nn.Sequential(layer_of_two_and_three(), conv).eval()
    conv.load_state_dict({"weight": torch.arange(1.0, 10.0).reshape(1, 1, 3, 3), "bias": torch.tensor([10.0])})
    folded, report = fold_for_inference(network)
    # Images 2 x / 3 = [[0, 2], [4, 6]]; the kernel's middle, 5, on each pixel, zeros around:
    # 10 + 5*0 + 6*2 + 8*4 + 9*6, 10 + 4*0 + 5*2 + 7*4 + 8*6, 10 + 2*0 + 3*2 + 5*4 + 6*6, 10 + 1*0 + 2*2 + 4*4 + 5*6.
    expected = torch.tensor([[[[108.0, 96.0], [72.0, 60.0]]]])
    x = torch.tensor([[[[0.0, 3.0], [6.0, 9.0]]]])
    torch.testing.assert_close(network(x), expected)
    torch.testing.assert_close(folded(x), expected)
    new = folded.get_submodule("1")
    assert isinstance(new, BorderedConv2d)
    torch.testing.assert_close(new.weight, conv.weight / 3)
    torch.testing.assert_close(new.taps, -conv.weight[:, 0])  # the shift is -m r = -1
    assert new.bias is not None and new.bias.item() == 10.0
    assert report.layers[0].output_into == ("1",)


def test_a_convolution_without_padding_takes_the_mean_into_its_bias() -> None:
    conv = nn.Conv2d(1, 1, 2)
    conv.load_state_dict({"weight": torch.full((1, 1, 2, 2), 6.0), "bias": torch.tensor([1.0])})
    folded, _ = fold_for_inference(nn.Sequential(layer_of_two_and_three(), conv))
    new = folded.get_submodule("1")
    assert type(new) is nn.Conv2d
    torch.testing.assert_close(new.weight, torch.full((1, 1, 2, 2), 2.0))
    torch.testing.assert_close(new.bias, torch.tensor([1.0 - 4 * 6.0]))


def test_relu_with_proxy_normalization_becomes_a_bound_at_the_published_numbers() -> None:
    # gamma 1, beta 0, eps 0.03: mean 0.398942, 1/std 1.64212.
    network = nn.Sequential(NormActFactory(norm="batch", eps=0.0)(2, "relu"), nn.Hardtanh(-9.0, 9.0)).eval()
    folded, report = fold_for_inference(network)
    layer = folded.get_submodule("0")
    assert report.layers[0].output == "bounds" and isinstance(layer, FoldedNormAct)
    assert layer.weight is not None and layer.bias is not None and layer.lower is not None
    for values, expected in ((layer.weight, 1.64212), (layer.bias, -0.655110), (layer.lower, -0.655110)):
        torch.testing.assert_close(values, torch.full((2,), expected), atol=5e-6, rtol=0.0)


# ---- one convolution

IMAGE_SIZES = st.integers(1, 7)


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.just("same"), st.just("valid")),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    mode=st.sampled_from(["zeros", "zeros", "replicate", "circular"]),
    size=st.tuples(IMAGE_SIZES, IMAGE_SIZES),
    bias=st.booleans(),
    sides=st.sampled_from(["before", "after", "both"]),
)
def test_a_folded_convolution_equals_the_affines_around_it_for_every_padding(
    kernel: Tuple[int, int],
    stride: Tuple[int, int],
    padding: Any,
    dilation: int,
    groups: int,
    mode: Any,
    size: Tuple[int, int],
    bias: bool,
    sides: str,
) -> None:
    if padding == "same":
        stride = (1, 1)
    pads = (0, 0) if isinstance(padding, str) else padding
    if padding != "same":
        assume(all(s + 2 * p >= dilation * (k - 1) + 1 for s, p, k in zip(size, pads, kernel)))
    # These paddings repeat the image at most once.
    assume(mode != "circular" or (padding != "same" and all(p <= s for s, p in zip(size, pads))))
    torch.manual_seed(0)
    conv = nn.Conv2d(
        4, 8, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups, bias=bias, padding_mode=mode
    ).double()
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    # A scale of 0 and one below 0 are not special cases here.
    before = ChannelAffine(torch.tensor([0.5, 0.0, -2.0, 3.0]).double(), torch.tensor([1.0, 2.0, -3.0, 0.5]).double())
    after = ChannelAffine(torch.randn(8).double(), torch.randn(8).double())
    with torch.no_grad():
        u = x if sides == "after" else x * before.scale.reshape(-1, 1, 1) + before.shift.reshape(-1, 1, 1)
        y = conv(u)
        y = y if sides == "before" else y * after.scale.reshape(-1, 1, 1) + after.shift.reshape(-1, 1, 1)
        folded = folded_conv(conv, None if sides == "after" else before, None if sides == "before" else after)
        torch.testing.assert_close(folded(x), y, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("activation", ["relu", "relu6", "silu", "hard_swish", "leaky_relu(0.2)", "gelu_tanh"])
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_every_kind_of_activation_folds_in_front_of_every_kind_of_layer(
    activation: str, norm: str, kernel: str
) -> None:
    torch.manual_seed(0)
    norm_act = factory(norm, kernel=kernel)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), norm_act(8, activation), nn.Conv2d(8, 8, 1), norm_act(8, activation),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=2), norm_act(8, activation), nn.MaxPool2d(3, 2, padding=1),
        nn.Conv2d(8, 12, 3, padding=2), norm_act(12, activation), nn.AvgPool2d(2), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(12 * 6, 5),
    )  # fmt: skip
    for dtype, tolerance in TOLERANCE.items():
        model = randomize(copy.deepcopy(network).to(dtype))
        folded, _ = fold_for_inference(model)
        # Large enough that ReLU6 and hard-swish reach their upper parts.
        assert relative_error(model, folded, 10 * torch.randn(2, 3, 15, 13, dtype=dtype)) < tolerance


# ---- where an output cannot be folded


class Join(nn.Module):
    """A layer's output enters `rest` and a sum."""

    def __init__(self, layer: nn.Module, rest: nn.Module) -> None:
        super().__init__()
        self.layer, self.rest = layer, rest

    def forward(self, x: Tensor) -> Tensor:
        z = self.layer(x)
        return self.rest(z) + z


@pytest.mark.parametrize(
    ("activation", "output", "buffers"),
    [
        ("relu", "bounds", {"weight", "bias", "lower"}),
        ("silu", "multiply-add", {"weight", "bias", "mean", "inverse_std"}),
    ],
)
def test_an_output_that_also_enters_a_sum_keeps_its_constants_in_the_layer(
    activation: str, output: str, buffers: set
) -> None:
    torch.manual_seed(0)
    model = randomize(Join(factory("batch")(4, activation), nn.Conv2d(4, 4, 1)).double())
    folded, report = fold_for_inference(model)
    assert [(row.output, row.output_into, row.note) for row in report.layers] == [(output, (), "used by add")]
    assert {name for name, _ in folded.get_submodule("layer").named_buffers()} == buffers
    assert torch.equal(folded.get_parameter("rest.weight"), model.get_parameter("rest.weight"))
    assert relative_error(model, folded, torch.randn(2, 4, 5, 5, dtype=torch.float64)) < 1e-12


def test_negative_scales_do_not_pass_max_pooling() -> None:
    torch.manual_seed(0)
    layer = factory("evonorm_s0")(8, "silu")
    network = nn.Sequential(layer, nn.MaxPool2d(2), nn.Conv2d(8, 8, 1)).double()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    folded, report = fold_for_inference(randomize(network))
    assert report.layers[0].output_into == ("2",)
    assert relative_error(network, folded, x) < 1e-12
    with torch.no_grad():
        layer.weight[3] = -1.0
    folded, report = fold_for_inference(network)
    assert report.layers[0].note == "used by MaxPool2d"
    assert relative_error(network, folded, x) < 1e-12


@pytest.mark.parametrize(
    "between",
    [
        nn.AvgPool2d(3, 2, padding=1),  # counts its zeros
        nn.AvgPool2d(2, divisor_override=3),
        nn.Flatten(2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1, padding=2),  # a padding of zeros in front of a kernel of one
        nn.ConvTranspose2d(4, 4, 2),
        nn.Linear(6, 6),  # acts on the last dim
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_does_not_commute_with_the_constants_changes_nothing(between: nn.Module) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(factory("batch")(4, "silu"), between, nn.Flatten(), nn.LazyLinear(3)).double()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    model(x)  # gives the last layer its size
    folded, _ = fold_for_inference(randomize(model))
    assert relative_error(model, folded, x) < 1e-12


def test_a_convolution_called_twice_takes_different_constants_at_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = factory("batch")(4, "silu"), factory("batch")(4, "silu")
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.second(self.conv(self.first(x)))) + self.conv.weight.sum()

    torch.manual_seed(0)
    model = randomize(Twice().double())
    folded, report = fold_for_inference(model)
    assert [row.output for row in report.layers] == ["moved", "moved"]
    assert relative_error(model, folded, torch.randn(2, 4, 5, 5, dtype=torch.float64)) < 1e-12


def test_modules_with_hooks_are_copied_as_they_are() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        factory("batch")(4, "silu"), nn.Conv2d(4, 4, 1), factory("batch")(4, "silu"), nn.Dropout(0.5)
    )  # fmt: skip
    network[1].register_forward_hook(lambda module, inputs, output: output * 2)
    network[2].register_forward_hook(lambda module, inputs, output: output * 3)
    network[3].register_forward_pre_hook(lambda module, inputs: inputs[0] + 1)
    model = randomize(network.double())
    folded, report = fold_for_inference(model)
    assert [row.note for row in report.layers] == ["used by Conv2d", "copied as it is: it has hooks"]
    assert relative_error(model, folded, torch.randn(2, 4, 5, 5, dtype=torch.float64)) < 1e-12


# ---- networks

SMALL = ["resnet8", "efficientnet_small", "efficientnet_small_g16"]
LARGE = [name for name in NETWORKS if name not in SMALL]
QUICK = ["resnet20", "resnext50_32x4d", "efficientnet_b0_g16"]


@pytest.mark.parametrize("norm", norm_names())
@pytest.mark.parametrize("name", SMALL)
def test_a_folded_network_computes_what_the_network_computes(name: str, norm: str) -> None:
    for dtype, tolerance in TOLERANCE.items():
        for kernel in ("auto", "reference"):
            model = small_network(name, factory(norm, kernel=kernel), dtype)
            folded, _ = fold_for_inference(model)
            assert relative_error(model, folded, torch.randn(2, 3, 17, 21, dtype=dtype)) < tolerance


@pytest.mark.parametrize("norm", ["batch", "layer", "instance", "group"])
@pytest.mark.parametrize("name", SMALL)
def test_folding_without_proxy_normalization(name: str, norm: str) -> None:
    model = small_network(name, factory(norm, proxy=False), torch.float64)
    folded, report = fold_for_inference(model)
    assert all(not row.output for row in report.layers)
    assert relative_error(model, folded, torch.randn(1, 3, 17, 17, dtype=torch.float64)) < 1e-10


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in LARGE])
def test_every_other_network_folds(name: str) -> None:
    norm = "batch" if "g16" in name else "group+ws"
    model = small_network(name, factory(norm, kernel="reference"), torch.float64)
    folded, report = fold_for_inference(model)
    assert any(row.output == "moved" for row in report.layers)
    assert relative_error(model, folded, torch.randn(1, 3, 37, 45, dtype=torch.float64)) < 1e-10


@pytest.mark.parametrize("options", [{"learn_proxy": False}, {"proxy_method": "sampled"}, {"norm_batch_size": 2}])
def test_every_setting_of_the_factory_folds(options: Dict[str, Any]) -> None:
    model = small_network("resnet8", factory("batch", **options), torch.float64)
    folded, _ = fold_for_inference(model)
    assert relative_error(model, folded, torch.randn(2, 3, 9, 9, dtype=torch.float64)) < 1e-10


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_the_folded_network_computes_no_proxy_statistics(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_network("efficientnet_small", factory("group", kernel=kernel), torch.float32)
    folded, _ = fold_for_inference(model)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("proxy statistics were computed again")

    monkeypatch.setattr(normact.norm_act, "proxy_statistics", refuse)
    monkeypatch.setattr(normact.norm_act.kernels, "fused_proxy_statistics", refuse)
    x = torch.randn(1, 3, 9, 9)
    folded(x)
    with pytest.raises(AssertionError, match="computed again"):
        model(x)


NETWORKS_OF_LIBRARIES: List[Tuple[str, str, str, int]] = [
    ("torchvision", "resnet18", "batch", 20),
    ("torchvision", "mobilenet_v2", "batch", 52),
    ("torchvision", "densenet121", "layer", 121),
    ("timm", "resnet18", "group", 20),
    ("timm", "efficientnet_b0", "batch", 49),
    ("timm", "dla34", "layer", 37),
]


def build_from_library(library: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(name, num_classes=3)
    return getattr(torchvision.models, name)(num_classes=3)


@pytest.mark.parametrize(("library", "name", "norm", "norms"), NETWORKS_OF_LIBRARIES)
def test_converted_networks_of_two_libraries_fold(library: str, name: str, norm: str, norms: int) -> None:
    model, _ = convert_norm(build_from_library(library, name), factory(norm, kernel="reference"))
    randomize(model.double())
    folded, report = fold_for_inference(model)
    assert len(report.layers) == norms
    assert relative_error(model, folded, torch.randn(1, 3, 64, 96, dtype=torch.float64)) < 1e-10


def test_plain_batch_norms_of_a_library_network_disappear_into_their_convolutions() -> None:
    model = randomize(build_from_library("torchvision", "resnet18").double())
    folded, report = fold_for_inference(model)
    assert len(report.layers) == 20 and all(row.norm_into for row in report.layers)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert relative_error(model, folded, torch.randn(1, 3, 33, 33, dtype=torch.float64)) < 1e-10


# ---- the copy and the report


def test_the_original_its_mode_and_the_random_generator_are_left_as_they_were() -> None:
    model = small_network("efficientnet_small", factory("batch+ws"), torch.float32).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    folded, _ = fold_for_inference(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    assert model.training and not folded.training
    shared = {values.data_ptr() for values in model.state_dict().values()}
    assert not shared & {values.data_ptr() for values in folded.state_dict().values()}
    assert not any(parameter.requires_grad for parameter in folded.parameters())


def test_training_mode_changes_nothing_in_a_folded_network() -> None:
    torch.manual_seed(0)
    network = build_model(
        "efficientnet_small", num_classes=5, norm_act=factory("batch"), drop_rate=0.5, drop_path_rate=0.5
    )
    folded, _ = fold_for_inference(randomize(network))
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(folded.train()(x), folded.eval()(x))


def test_the_report_of_a_small_network_says_where_everything_went() -> None:
    _, report = fold_for_inference(small_network("efficientnet_small", factory("batch+ws"), torch.float64))
    rows = {row.path: row for row in report.layers}
    assert len(rows) == 19 and all(row.norm_into for row in report.layers)
    assert (rows["stem.norm"].output, rows["stem.norm"].note) == ("multiply-add", "used by add")
    assert rows["stages.1.0.norm1"].norm_into == "stages.1.0.conv1"
    assert rows["stages.1.0.norm1"].output_into == ("stages.1.0.conv2",)
    assert rows["stages.1.0.norm2"].output == "multiply-add" and rows["stages.1.0.norm2"].note == "used by mul"
    assert rows["stages.1.0.norm3"].output == ""
    assert rows["top.norm"].output_into == ("classifier",)
    assert len(report.standardized) == 19
    lines = str(report).splitlines()
    assert len(lines) == 1 + 19 + 2
    assert lines[1].split() == ["stem.norm", "BatchNorm", "stem.conv", "multiply-add", "-", "used", "by", "add"]
    assert lines[-2] == "19 layers: 19 norms folded; outputs: 6 moved, 7 multiply-add"
    assert lines[-1] == "19 weight-standardized convolutions are now plain ones"


def test_the_report_of_a_network_without_anything_to_fold_says_so() -> None:
    _, report = fold_for_inference(nn.Sequential(factory("frn")(4, "relu")))
    assert report.layers[0].note == "copied as it is: nothing in it is constant"
    assert str(report).splitlines()[-1] == "1 layer: 0 norms folded; outputs: none"
    assert str(FoldReport(())).splitlines()[-1] == "0 layers: 0 norms folded; outputs: none"


def test_batch_norm_without_running_statistics_or_of_an_own_class_is_copied() -> None:
    class Louder(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.Conv2d(4, 4, 1), Louder(4)
    )
    model = randomize(network.double())
    folded, report = fold_for_inference(model)
    assert [row.note.split(": ")[1][:14] for row in report.layers] == ["it has no runn", "Louder may do "]
    assert relative_error(model, folded, torch.randn(2, 3, 4, 4, dtype=torch.float64)) < 1e-12


def test_a_network_that_branches_on_values_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match=r"Branching cannot be traced by torch\.fx.*use the network unfolded"):
        fold_for_inference(Branching())


def test_optional_arguments_are_fixed_at_their_defaults_and_others_refused() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = factory("batch")(4, "relu")

        def forward(self, x: Tensor, double: bool = False) -> Tensor:
            return self.norm(x) * 2 if double else self.norm(x)

    model = randomize(Optional())
    folded, _ = fold_for_inference(model)
    x = torch.randn(1, 4, 3, 3)
    torch.testing.assert_close(folded(x), model(x))
    with pytest.raises(AssertionError, match="specialized"):
        folded(x, True)


def test_a_folded_layer_refuses_wrong_channels() -> None:
    folded, _ = fold_for_inference(nn.Sequential(factory("batch")(4, "relu")))
    with pytest.raises(ValueError, match="this layer was built for 4 channels"):
        folded(torch.randn(1, 1, 3, 3))
