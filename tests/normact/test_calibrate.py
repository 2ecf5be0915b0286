"""convert_norm(calibrate=images): the network's function where constants can keep it, and what is said where not."""

import copy
from typing import Any, Tuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normact import NormAct, NormActFactory, convert_norm, proxy_statistics
from normact.convert.neutral_proxy import neutral_proxy

PLAIN = NormActFactory(num_groups=4, proxy=False)
PROXY = NormActFactory(num_groups=4)


def trained(model: nn.Module, image: Tensor) -> nn.Module:
    """Batch norms whose running statistics are those of one image: there, group norm differs by constants alone."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.momentum = 1.0
            module.eps = 1e-8
    model.double().train()
    with torch.no_grad():
        # The unbiased variance that running statistics hold is that of the image but for 1 / (number of values).
        model(image)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(_set_population_statistics)
        model.eval()(image)
    for module in model.modules():
        module._forward_pre_hooks.clear()
    return model


def _set_population_statistics(module: nn.Module, inputs: Tuple[Tensor]) -> None:
    var, mean = torch.var_mean(inputs[0], [0, 2, 3], unbiased=False)
    module.running_mean.copy_(mean)
    module.running_var.copy_(var)


def network(activation: nn.Module, kernel: int = 1) -> nn.Module:
    padding = kernel // 2
    return nn.Sequential(
        nn.Conv2d(3, 8, kernel, padding=padding),
        nn.BatchNorm2d(8),
        activation,
        nn.Conv2d(8, 12, kernel, padding=padding, bias=False),
        nn.BatchNorm2d(12),
        copy.deepcopy(activation),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


class Gated(nn.Module):
    """The activation goes to two places, as in squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.gate = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)))
        return y * self.gate(y).sigmoid()


def image() -> Tensor:
    return torch.randn(1, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def relative_error(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


# The variance of a channel has 1e-5 added where its deviation is divided by, and the norm 1e-5.
ROUNDING = 1e-4


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.PReLU()], ids=["relu", "silu", "prelu"])
def test_group_norm_is_the_same_function_where_statistics_are_constant(activation: nn.Module, kernel: int) -> None:
    x = image()
    original = trained(network(activation, kernel), x)
    converted, report = convert_norm(copy.deepcopy(original), PLAIN, calibrate=x)
    without, _ = convert_norm(copy.deepcopy(original), PLAIN)
    assert relative_error(converted(x), original(x)) < ROUNDING
    assert relative_error(without(x), original(x)) > 100 * ROUNDING
    assert [layer.path for layer in report.calibrated] == ["1", "4"] and "2 layers calibrated" in str(report)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU(), nn.PReLU()], ids=["relu", "silu", "prelu"])
def test_proxy_normalization_is_taken_back_by_the_layers_that_follow(activation: nn.Module) -> None:
    x = image()
    original = trained(network(activation), x)
    converted, report = convert_norm(copy.deepcopy(original), PROXY, calibrate=x)
    assert relative_error(converted(x), original(x)) < ROUNDING
    assert [layer.output for layer in report.calibrated] == ["taken back", "taken back"]
    for index, norm in ((1, original[1]), (4, original[4])):
        layer: Any = converted.get_submodule(str(index))
        assert isinstance(layer, NormAct) and layer.proxy_beta is not None and layer.proxy_gamma is not None
        # The proxy variable has the moments that batch norm gives its activation.
        scale = (layer.weight * (1 + layer.proxy_gamma)).abs()
        torch.testing.assert_close(scale, norm.weight.abs(), rtol=1e-6, atol=0)
        mean = layer.bias + layer.weight * layer.proxy_beta
        torch.testing.assert_close(mean, norm.bias, rtol=0, atol=1e-12)


def test_where_the_output_goes_elsewhere_too_proxy_normalization_starts_as_the_identity() -> None:
    x = image()
    original = trained(Gated(), x)
    converted, report = convert_norm(copy.deepcopy(original), PROXY, calibrate=x)
    (layer,) = report.calibrated
    assert (layer.output, layer.note) == ("neutral", "used by mul")
    assert "calibration of norm: neutral; used by mul" in str(report)
    # The mean of ReLU under its neutral proxy is .018, not 0.
    assert relative_error(converted(x), original(x)) < 0.05


@pytest.mark.parametrize("activation", ["relu", "silu", "hard_swish", "leaky_relu(0.2)", "elu", "tanh"])
def test_under_a_neutral_proxy_the_activation_has_no_mean_and_unit_variance(activation: str) -> None:
    m, s, distance = neutral_proxy(activation, 0.03)
    mean, inverse_std = proxy_statistics(activation, torch.tensor([s]).double(), torch.tensor([m]).double(), eps=0.03)
    assert abs(mean.item()) <= distance + 1e-9 and abs(inverse_std.item() - 1) <= distance + 1e-9
    assert distance < 0.02


def test_an_activation_that_cannot_be_neutral_is_told() -> None:
    class SigmoidGate(Gated):
        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x)).sigmoid()
            return y * self.gate(y)

    _, report = convert_norm(trained(SigmoidGate(), image()).float(), PROXY, calibrate=image().float())
    assert report.calibrated[0].output == "changed"
    assert "no proxy of sigmoid has mean 0 and variance 1" in report.calibrated[0].note


def test_shared_weights_are_not_rescaled() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(F.relu(self.norm2(self.conv(F.relu(self.norm1(x))))))

    model = Shared()
    weight = model.conv.weight.clone()
    _, report = convert_norm(model, NormActFactory(norm="layer"), calibrate=torch.randn(4, 3, 5, 5))
    assert torch.equal(model.conv.weight, weight)
    assert {layer.output for layer in report.calibrated} == {"neutral"}


def test_layers_that_share_gamma_keep_it_and_are_told_of() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    model[4].weight = model.double()[1].weight
    converted, report = convert_norm(model, NormActFactory(norm="layer"), calibrate=image())
    assert [layer.note for layer in report.calibrated] == ["not calibrated: others hold its gamma or beta too"] * 2
    assert torch.equal(converted.get_submodule("1").weight, torch.ones(8, dtype=torch.float64))


def test_dead_channels_modes_and_frozen_parameters_stay_sound() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).requires_grad_(False)
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[1].weight)
    model[1].eval()
    converted, _ = convert_norm(model, NormActFactory(norm="layer"), calibrate=torch.randn(4, 3, 5, 5))
    assert all(parameter.isfinite().all() and not parameter.requires_grad for parameter in converted.parameters())
    assert converted.training and not converted.get_submodule("1").training
    assert converted(torch.randn(2, 3, 5, 5)).isfinite().all()


@pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.BatchNorm2d(8, track_running_stats=False)])
def test_a_norm_that_was_no_batch_norm_with_statistics_is_left_alone_and_told_of(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.ReLU())
    _, report = convert_norm(copy.deepcopy(model), PROXY, calibrate=torch.randn(4, 3, 5, 5))
    assert report.norms[0].proxy and report.calibrated == () and report.uncalibrated == ("1",)
    assert "1 layers not calibrated (1, ...): what they replaced was no batch norm" in str(report)
    assert "not calibrated" not in str(convert_norm(model, PROXY)[1])


@pytest.mark.parametrize("norm", ["batch", "frn", "dyt"])
def test_norms_without_matching_moments_are_refused_before_anything_changes(norm: str) -> None:
    model = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
    with pytest.raises(ValueError, match="use group, layer or instance"):
        convert_norm(model, NormActFactory(norm=norm), calibrate=torch.randn(4, 8, 5, 5))
    assert type(model[0]) is nn.BatchNorm2d
