"""What is left of a channel's mean after PN, and of which of three terms it is made: by hand, and in any split."""

from __future__ import annotations

import math
from typing import Optional

import pytest
import torch
from torch import Tensor, nn

from analysis.proxy_fit import ProxyFit, fit_table, measure_proxy_fit, refitted
from normact import NormAct, NormActFactory

MEAN, VARIANCE = 1 / math.sqrt(2 * math.pi), 0.5 - 1 / (2 * math.pi)  # of ReLU under N(0, 1)
EPS = 0.03


def layer(channels: int = 2, activation: Optional[str] = "relu") -> NormAct:
    return NormActFactory(norm="layer", proxy=True, eps=0.0)(channels, activation)


def fit_of(module: nn.Module, *batches: Tensor) -> ProxyFit:
    (fit,) = measure_proxy_fit(module, batches)
    return fit


def test_channels_that_are_constants_are_a_matter_of_balance() -> None:
    # Layer norm makes 1 and -1 of the two channels: ReLU gives 1 and 0, in place of the proxy's mean.
    fit = fit_of(layer(), torch.tensor([[[[5.0]], [[1.0]]]]))
    scale = 1 / math.sqrt(VARIANCE + EPS)
    expected = scale * math.sqrt(((1 - MEAN) ** 2 + MEAN**2) / 2)
    assert (fit.collapse_before, fit.collapse_after) == pytest.approx((1.0, 1.0))
    assert (fit.lowest_deviation, fit.highest_deviation) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert fit.left == pytest.approx(expected, rel=1e-5)
    assert fit.balance == pytest.approx(expected, rel=1e-5)
    assert (fit.shape, fit.parameters) == pytest.approx((0.0, 0.0), abs=1e-6)


def two_values() -> Tensor:
    """Return mean 0 and deviation 1 in both channels, and far from Gaussian."""
    return torch.tensor([[[[1.0, -1.0]], [[-1.0, 1.0]]]])


def test_two_values_of_the_right_mean_and_deviation_are_a_matter_of_shape() -> None:
    fit = fit_of(layer(), two_values())
    expected = (0.5 - MEAN) / math.sqrt(VARIANCE + EPS)  # ReLU gives 1 and 0
    assert fit.collapse_before == pytest.approx(0.0, abs=1e-12)
    assert (fit.lowest_deviation, fit.highest_deviation) == pytest.approx((1.0, 1.0))
    assert (fit.left, fit.shape) == pytest.approx((expected, expected), rel=1e-5)
    assert (fit.balance, fit.parameters) == pytest.approx((0.0, 0.0), abs=1e-6)


def test_the_proxys_own_parameters_are_their_own_term() -> None:
    module = layer()
    assert module.proxy_beta is not None
    module.proxy_beta.data.fill_(1.0)
    fit = fit_of(module, two_values())
    # ReLU under N(1, 1), with P = Phi(1), p the density at 1: mean P + p; variance P + P Q + p (Q - P) - p^2.
    above, density = 0.5 * math.erfc(-1 / math.sqrt(2)), math.exp(-0.5) / math.sqrt(2 * math.pi)
    below = 1 - above
    variance = above + above * below + density * (below - above) - density**2
    scale = 1 / math.sqrt(variance + EPS)
    assert fit.parameters == pytest.approx(abs(MEAN - above - density) * scale, rel=1e-5)
    assert fit.shape == pytest.approx((0.5 - MEAN) * scale, rel=1e-5)
    assert fit.left == pytest.approx(abs(0.5 - above - density) * scale, rel=1e-5)


def test_a_gaussian_channel_with_random_affine_leaves_nothing() -> None:
    module = NormActFactory(norm="batch", proxy=True, proxy_eps=0.0)(8, "silu")
    generator = torch.Generator().manual_seed(0)
    module.weight.data.normal_(1.0, 0.2, generator=generator)
    assert module.bias is not None
    module.bias.data.normal_(0.0, 0.2, generator=generator)
    images = torch.randn(50, 8, 20, 20, generator=generator)
    fit = fit_of(module, *images.split(7))
    # 20,000 values per channel: means known to 0.007.
    assert fit.left < 0.02
    assert fit.shape < 0.01
    assert fit.collapse_after < 1e-3


def test_any_split_into_batches_gives_the_same_fit_and_leaves_the_network_alone() -> None:
    torch.manual_seed(0)
    factory = NormActFactory(norm="group", num_groups=2, proxy=True)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), factory(4, "relu"), nn.Conv2d(4, 8, 3), factory(8, "silu"))
    images = torch.randn(9, 3, 8, 8) + 1
    before = network(images)
    whole, parts = measure_proxy_fit(network, [images]), measure_proxy_fit(network, images.split(4))
    assert [fit.name for fit in whole] == ["1", "3"]
    for one, other in zip(whole, parts):
        # Float32 convolutions of other batch sizes.
        assert other[1:] == pytest.approx(one[1:], rel=1e-3, abs=1e-5)
    assert network.training
    assert torch.equal(network(images), before)
    assert not any(module._forward_hooks for module in network.modules())
    lines = fit_table(whole).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith(f"1  {whole[0].collapse_before:7.3f}")


def test_refitted_proxies_leave_shape_alone_and_remove_the_collapse_behind_unbalanced_channels() -> None:
    torch.manual_seed(0)
    factory = NormActFactory(norm="layer", proxy=True)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), factory(16, "relu"), nn.Conv2d(16, 16, 3, bias=False), factory(16, "relu")
    )
    with torch.no_grad():
        network[0].weight *= torch.linspace(0.1, 3, 16).view(-1, 1, 1, 1)
    images = torch.randn(40, 3, 12, 12)
    before = measure_proxy_fit(network, [images])
    again = refitted(network, images)
    after = measure_proxy_fit(again, images.split(7))
    assert before[0].highest_deviation > 1.5
    assert before[1].collapse_before > 0.05
    assert after[1].collapse_before < 0.01
    for fit in after:
        assert fit.left == pytest.approx(fit.shape, abs=2e-3)  # balance and parameters cancel
    assert network[1].proxy_beta.abs().max() == 0
    assert not any(module._forward_pre_hooks for module in again.modules())


def test_proxies_without_parameters_cannot_be_refitted() -> None:
    module = NormActFactory(norm="layer", proxy=True, learn_proxy=False)(2, "relu")
    with pytest.raises(ValueError, match="have no parameters to refit"):
        refitted(module, two_values())


def test_hooks_are_gone_after_an_error() -> None:
    module = layer()
    with pytest.raises(ValueError, match="channels"):
        measure_proxy_fit(module, [torch.zeros(1, 3, 2, 2)])
    assert not module._forward_hooks


@pytest.mark.parametrize(
    "network", [nn.BatchNorm2d(2), NormActFactory(norm="layer", proxy=False)(2, "relu"), layer(2, None)]
)
def test_a_network_without_pn_is_refused(network: nn.Module) -> None:
    with pytest.raises(ValueError, match="no norm of this network has Proxy Normalization"):
        measure_proxy_fit(network, [])
