"""convert_norm on networks of two libraries and on small ones made for each case."""

import copy
from typing import Any, Dict, List, Tuple

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.images.torchvision_import import torchvision
from normact import NormAct, NormActFactory, convert_norm
from normact.recognize import describe_norm

# library, network, its norms, how many are followed by an activation, the modules rewritten as graphs
NETWORKS: List[Tuple[str, str, int, int, int]] = [
    ("torchvision", "resnet18", 20, 9, 8),
    ("torchvision", "mobilenet_v2", 52, 35, 0),
    ("torchvision", "efficientnet_b0", 49, 33, 0),
    ("torchvision", "densenet121", 121, 121, 1),
    ("torchvision", "regnet_y_400mf", 53, 33, 0),
    ("timm", "resnet18", 20, 9, 0),
    ("timm", "mobilenetv2_050", 52, 35, 0),
    ("timm", "efficientnet_b0", 49, 33, 0),
    ("timm", "densenet121", 121, 121, 0),
    ("timm", "regnetx_002", 44, 27, 0),
    ("timm", "dla34", 37, 21, 1),
    ("timm", "vgg11_bn", 8, 8, 0),
]
IDS = [f"{library}-{name}" for library, name, *_ in NETWORKS]


def build(library: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    if library == "timm":
        # VGG's 120 million weights after its last convolution have no norm among them; half a million do.
        sizes = {"mlp_ratio": 1 / 256} if name.startswith("vgg") else {}
        model = timm.create_model(name, num_classes=3, **sizes)
    else:
        model = getattr(torchvision.models, name)(num_classes=3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-5
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        # Random depth and dropout would draw different numbers in the two copies.
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if type(module).__name__ == "StochasticDepth":
            module.p = 0.0  # type: ignore[assignment]
    return model


@pytest.mark.parametrize(("library", "name", "norms", "pairs", "rewritten"), NETWORKS, ids=IDS)
def test_the_report_holds_every_norm_and_the_network_trains_image_by_image(
    library: str, name: str, norms: int, pairs: int, rewritten: int
) -> None:
    model = build(library, name)
    originals = [path for path, module in model.named_modules() if describe_norm(module) is not None]
    assert len(originals) == sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    model, report = convert_norm(model, NormActFactory(norm="layer"))
    assert [row.path for row in report.norms] == originals
    assert (len(report.norms), sum(row.proxy for row in report.norms), len(report.rewritten)) == (
        norms,
        pairs,
        rewritten,
    )
    assert all(row.reason for row in report.norms if not row.proxy)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    assert sum(isinstance(module, NormAct) for module in model.modules()) == norms

    x = torch.randn(2, 3, 64, 64)
    model.train()
    model(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    model.eval()
    with torch.no_grad():
        # Float32 rounding of another batch size's convolutions, over up to 121 layers.
        torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("library", "name"), [row[:2] for row in NETWORKS], ids=IDS)
def test_conversion_to_the_same_norm_is_the_same_function(library: str, name: str) -> None:
    original = build(library, name)
    converted, _ = convert_norm(copy.deepcopy(original), NormActFactory(norm="batch", proxy=False))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for training in (True, False):
            original.train(training)
            converted.train(training)
            # The same operations; training first, so that evaluation sees the updated running statistics.
            torch.testing.assert_close(converted(x), original(x), rtol=1e-5, atol=1e-5)


class Case(nn.Module):
    """conv -> norm -> forward given by the case."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        for name, module in modules.items():
            self.add_module(name, module)


class Functional(Case):
    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2)


class Method(Case):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).sigmoid()


class Module(Case):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self.norm(self.conv(x))))


class Shared(Case):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.act(self.act(self.norm(y)) + y)


class TwoUses(Case):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return self.act(y) + y


class Twice(Case):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.norm(self.conv(x))))


class DependsOnMode(Case):
    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        return y * 2 if self.training else y


class Untraceable(Case):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return F.relu(y) if x.sum() > 0 else y


class PadsBySize(nn.Conv2d):
    """A convolution whose code cannot be traced, as timm's Conv2dSame."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, [max(x.shape[3] % 2, 1)] * 2))


class Optional2(Case):
    def forward(self, x: Tensor, skip: Any = None) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        return y if skip is None else y + skip


def case_modules(**modules: nn.Module) -> Dict[str, nn.Module]:
    return {"act": nn.ReLU(), "drop": nn.Identity(), **modules}


CASES = [
    (Functional(), "leaky_relu(0.2)", ("",), ""),
    (Method(), "sigmoid", ("",), ""),
    (Module(**case_modules()), "relu", (), ""),
    (Module(**case_modules(act=nn.GELU(approximate="tanh"))), "gelu_tanh", (), ""),
    (Module(**case_modules(drop=nn.Dropout(0.0))), "relu", (), ""),
    (Module(**case_modules(drop=nn.Dropout(0.3))), "relu", (), "Dropout now follows Proxy Normalization"),
    (Module(**case_modules(drop=nn.Dropout2d(0.3), act=nn.PReLU())), "PReLU", (), "Dropout2d now follows"),
    (Module(**case_modules(drop=nn.Dropout(0.3), act=nn.SiLU())), None, (), "active Dropout before its silu"),
    (Module(**case_modules(drop=nn.AlphaDropout(0.3))), None, (), "followed by AlphaDropout"),
    (Module(**case_modules(act=nn.PReLU())), "PReLU", (), ""),
    (Module(**case_modules(act=nn.PReLU(8))), "PReLU", (), ""),
    (Shared(**case_modules(act=nn.PReLU())), "PReLU", ("",), ""),
    (Module(**case_modules(act=nn.Softsign())), "Softsign", (), ""),
    (Module(**case_modules(act=nn.Hardsigmoid())), "hard_sigmoid", (), ""),
    (Module(**case_modules(act=nn.Softmax(1))), None, (), "does not act element by element"),
    (Module(**case_modules(act=nn.Hardshrink())), None, (), "has a kink"),
    (Module(**case_modules(act=nn.SELU())), "selu", (), ""),
    (Module(**case_modules(act=nn.CELU())), "elu", (), ""),
    (Module(**case_modules(act=nn.CELU(alpha=0.5))), "celu(0.5)", (), ""),
    (Module(**case_modules(act=nn.ELU(alpha=0.5))), "elu(0.5)", (), ""),
    (Shared(**case_modules()), "relu", ("",), ""),
    (Module(**case_modules(conv=PadsBySize(3, 8, 3))), "relu", (), ""),
    (Functional(conv=PadsBySize(3, 8, 3)), "leaky_relu(0.2)", ("",), ""),
    (Untraceable(conv=PadsBySize(3, 8, 3)), None, (), "no traced data flow"),
    (TwoUses(**case_modules()), None, (), "used in 2 places"),
    (Twice(**case_modules()), None, (), "called at 2 places"),
    (DependsOnMode(), None, (), "differs between training and evaluation"),
    (Untraceable(), None, (), "no traced data flow"),
    (Optional2(), None, (), "optional arguments skip"),
]


@pytest.mark.parametrize(
    ("model", "activation", "rewritten", "reason"),
    CASES,
    ids=[f"{i}-{type(case[0]).__name__}" for i, case in enumerate(CASES)],
)
def test_each_case_pairs_or_says_why_not(model: nn.Module, activation: Any, rewritten: Any, reason: str) -> None:
    model = copy.deepcopy(model).eval()
    x = torch.randn(2, 3, 5, 5)
    before = model(x)
    same, report = convert_norm(copy.deepcopy(model), NormActFactory(norm="batch", proxy=False))
    torch.testing.assert_close(same(x), before)
    _, report = convert_norm(model, NormActFactory(num_groups=4))
    (row,) = report.norms
    assert (row.path, row.original, row.activation, row.proxy) == (
        "norm",
        "BatchNorm2d",
        activation,
        activation is not None,
    )
    assert report.rewritten == rewritten
    assert reason in row.reason and bool(reason) == bool(row.reason)
    assert "BatchNorm2d" in str(report) and reason in str(report)


def test_a_pair_behind_a_convolution_that_pads_by_size_is_found_in_timms_nasnet() -> None:
    block = pytest.importorskip("timm").models.nasnet.BranchSeparables(8, 8, 3, 2, pad_type="same")
    model = nn.Sequential(block, nn.Flatten())
    _, report = convert_norm(model, NormActFactory(num_groups=4))
    assert [(row.path, row.activation) for row in report.norms] == [("0.bn_sep_1", "relu"), ("0.bn_sep_2", None)]
    assert not report.trace_failures and model(torch.randn(2, 8, 9, 9)).isfinite().all()


def test_a_failed_trace_is_in_the_report() -> None:
    _, report = convert_norm(Untraceable(), NormActFactory())
    assert report.trace_failures[0][0] == "" and "control flow" in report.trace_failures[0][1]
    assert "data flow of (the network) could not be traced" in str(report)


def test_gamma_beta_mode_and_frozen_parameters_are_carried_over() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.03), nn.ReLU())
    nn.init.uniform_(model[1].weight)
    nn.init.uniform_(model[1].bias)
    model[1].weight.requires_grad_(False)
    weight, bias = model[1].weight.clone(), model[1].bias.clone()
    model.eval()
    converted, _ = convert_norm(model, NormActFactory(norm="batch"))
    layer = converted.get_submodule("1")
    assert torch.equal(layer.weight, weight) and torch.equal(layer.bias, bias)
    assert not layer.weight.requires_grad and layer.bias.requires_grad
    assert not layer.training and layer.norm.momentum == 0.03


def test_norms_that_cannot_be_replaced_are_kept_with_a_reason() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LayerNorm(6), nn.ReLU())
    _, report = convert_norm(model, NormActFactory())
    assert report.norms[0].replaced_by is None and "trailing dims" in report.norms[0].reason
    assert isinstance(model[1], nn.LayerNorm)


def test_a_layer_that_cannot_be_built_names_the_norm_and_leaves_the_network_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(6), nn.ReLU())
    with pytest.raises(ValueError, match=r"2 \(BatchNorm2d\): num_groups 4 does not divide 6"):
        convert_norm(model, NormActFactory(num_groups=4))
    assert type(model[0]) is nn.BatchNorm2d and type(model[1]) is nn.ReLU


def test_weight_standardization_is_refused() -> None:
    with pytest.raises(ValueError, match="not convolutions"):
        convert_norm(nn.Sequential(nn.BatchNorm2d(8)), NormActFactory(norm="group+ws"))


def test_a_norm_alone_is_a_network_too() -> None:
    layer, report = convert_norm(nn.BatchNorm2d(8), NormActFactory())
    assert isinstance(layer, NormAct) and layer.bias is not None
    assert report.norms[0].path == ""


def test_a_norm_used_under_two_names_is_replaced_under_both() -> None:
    shared = nn.BatchNorm2d(16)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), shared, nn.ReLU(), nn.Conv2d(16, 16, 3), shared, nn.ReLU())
    converted, _ = convert_norm(model, NormActFactory(norm="layer"))
    assert not [module for module in converted.modules() if isinstance(module, nn.BatchNorm2d)]


def test_a_norm_without_tensors_takes_the_device_and_type_of_the_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16), nn.ReLU()).double().to("meta")
    converted, _ = convert_norm(model, NormActFactory(norm="layer"))
    assert {(p.device.type, p.dtype) for p in converted.parameters()} == {("meta", torch.float64)}
