"""DyT and Derf against numbers computed by hand, and the questions that every norm is asked."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from normact import NormActFactory, affine_parameter_names, convert_norm, fold_for_inference
from normact.pointwise import DynamicErf, DynamicTanh

X = [[2.0, -1.0], [0.0, 4.0]]
# tanh(1), tanh(-.5), tanh(2); erf(1), erf(-.5), erf(2), as tables have them.
TANH = {1.0: 0.761594155955765, -0.5: -0.462117157260010, 2.0: 0.964027580075817}
ERF = {1.0: 0.842700792949715, -0.5: -0.520499877813047, 2.0: 0.995322265018953}


@pytest.mark.parametrize(("kind", "table"), [(DynamicTanh, TANH), (DynamicErf, ERF)])
def test_values_equal_hand_computed_numbers_at_first(kind: Any, table: Any) -> None:
    norm = kind(2).double()
    expected = torch.tensor([[table[1.0], table[-0.5]], [0.0, table[2.0]]], dtype=torch.float64)
    x = torch.tensor(X, dtype=torch.float64)
    torch.testing.assert_close(norm(x).detach(), expected, rtol=1e-12, atol=1e-14)
    weight, bias = torch.tensor([2.0, 3.0]).double(), torch.tensor([10.0, 20.0]).double()
    torch.testing.assert_close(norm(x, weight, bias).detach(), expected * weight + bias, rtol=1e-12, atol=1e-12)


def test_alpha_and_the_shift_are_one_number_of_the_layer_each() -> None:
    norm = DynamicErf(2).double()
    with torch.no_grad():
        norm.alpha.fill_(0.25)
        norm.shift.fill_(0.5)
    # erf(.25 * 2 + .5) = erf(1) and erf(.25 * 6 + .5) = erf(2)
    x = torch.tensor([[2.0, 6.0]], dtype=torch.float64)
    expected = torch.tensor([[ERF[1.0], ERF[2.0]]], dtype=torch.float64)
    torch.testing.assert_close(norm(x).detach(), expected, rtol=1e-12, atol=0)
    assert [tuple(value.shape) for value in norm.parameters()] == [(), ()]
    assert [name for name, _ in DynamicTanh(2).named_parameters()] == ["alpha"]


@pytest.mark.parametrize("name", ["dyt", "derf"])
def test_gradients_of_a_layer_are_right_and_its_numbers_take_no_weight_decay(name: str) -> None:
    torch.manual_seed(0)
    layer = NormActFactory(norm=name)(3, "silu").double()
    assert affine_parameter_names(layer) == {n for n, _ in layer.named_parameters()}
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters())
    assert torch.autograd.gradcheck(
        lambda x, *given: torch.func.functional_call(layer, dict(zip(names, given)), (x,)), (x, *values)
    )


@pytest.mark.parametrize("name", ["dyt", "derf"])
def test_proxy_normalization_is_refused_since_nothing_is_normalized(name: str) -> None:
    assert NormActFactory(norm=name).proxy is False
    with pytest.raises(ValueError, match="its output does not have mean 0 and variance 1; leave proxy out"):
        NormActFactory(norm=name, proxy=True)
    with pytest.raises(ValueError, match=r"eps=0\.1 has no effect"):
        NormActFactory(norm=name, eps=0.1)
    with pytest.raises(ValueError, match=r"\+ws.* is unknown"):
        NormActFactory(norm=name + "+ws")


@pytest.mark.parametrize("name", ["dyt", "derf"])
def test_folding_leaves_the_bounded_values_where_they_are(name: str) -> None:
    # The affine stands behind the function: it cannot go into the convolution in front.
    torch.manual_seed(0)
    factory = NormActFactory(norm=name)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), factory(4, "relu"), nn.Conv2d(4, 4, 1), factory(4, None)).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, 1.0, 0.5)
    folded, report = fold_for_inference(network)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(folded(x), network(x), rtol=1e-12, atol=1e-12)
    assert [row.norm_into for row in report.layers] == ["", ""]


@pytest.mark.parametrize("name", ["dyt", "derf"])
def test_other_networks_are_converted_to_them(name: str) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    converted, report = convert_norm(network, NormActFactory(norm=name))
    assert report.norms[0].activation == "relu" and not report.norms[0].proxy
    x = torch.randn(2, 3, 6, 6)
    function = torch.tanh if name == "dyt" else torch.erf
    torch.testing.assert_close(converted(x), function(0.5 * network[0](x)).relu())
    assert math.isfinite(float(converted(1e30 * x).detach().sum()))  # bounded
