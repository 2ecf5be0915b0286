"""Modules, classes and functions as a layer's activation: taken with their parameters, or refused when it is made."""

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from normact import NormActFactory, fold_for_inference, proxy_statistics
from normact.activations import activation_function


class GatedBy(nn.Module):
    """x sigmoid(b x) with a learned b."""

    def __init__(self, b: float = 1.3) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.tensor(b))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.b * x)


class Swish(nn.Module):
    """Another library's class of a known name, with a factor of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.7 * x)


def softsign(x: Tensor) -> Tensor:
    return x / (1 + x.abs())


NAMED = [
    (nn.ReLU, "relu"),
    (nn.ReLU(inplace=True), "relu"),
    (functools.partial(nn.LeakyReLU, 0.3), "leaky_relu(0.3)"),
    (functools.partial(F.leaky_relu, negative_slope=0.2), "leaky_relu(0.2)"),
    (nn.ELU(alpha=0.5), "elu(0.5)"),
    (nn.CELU, "elu"),
    (nn.CELU(2.0), "celu(2.0)"),
    (nn.SELU(), "selu"),
    (nn.Hardsigmoid, "hard_sigmoid"),
    (nn.Hardtanh(), "hard_tanh"),
    (nn.Mish, "mish"),
    (nn.Softplus(beta=2.0), "softplus(2.0)"),
    (nn.GELU("tanh"), "gelu_tanh"),
    (F.gelu, "gelu"),
    (functools.partial(F.gelu, approximate="tanh"), "gelu_tanh"),
]


@pytest.mark.parametrize(("given", "name"), NAMED, ids=[name for _, name in NAMED])
def test_what_torch_calls_by_another_word_is_the_layer_of_that_name(given: Any, name: str) -> None:
    layer, named = NormActFactory()(8, given), NormActFactory()(8, name)
    assert layer.activation == name and set(layer.state_dict()) == set(named.state_dict())
    x = torch.randn(2, 8, 3, 3)
    assert torch.equal(layer(x), named(x))
    function = given() if isinstance(given, type) or getattr(given, "func", None) is nn.LeakyReLU else given
    torch.testing.assert_close(activation_function(name)(x), function(x.clone()))


SMOOTH = [torch.sin, nn.LogSigmoid, nn.Tanhshrink(), GatedBy, Swish, softsign]


@pytest.mark.parametrize("given", SMOOTH)
def test_any_function_of_each_element_by_itself_has_proxy_statistics(given: Any) -> None:
    layer = NormActFactory(norm="layer")(4, given).double()
    function = layer.phi if not isinstance(given, type) else copy.deepcopy(layer.phi)
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    # A sum over 100,001 nodes: the layer takes 129. Softsign's second derivative jumps, which costs 1e-4.
    z = torch.linspace(-9, 9, 100001, dtype=torch.float64)
    density = torch.exp(-0.5 * z * z)
    density = density / density.sum()
    phi = function(z)  # type: ignore[misc]
    mean = (density * phi).sum()
    inverse_std = ((density * (phi - mean) ** 2).sum() + 0.03).rsqrt()
    expected = (function(F.group_norm(x, 1)) - mean) * inverse_std  # type: ignore[misc]
    torch.testing.assert_close(layer(x), expected, atol=2e-4 if given is softsign else 1e-9, rtol=0)


REFUSED = [
    (nn.Softmax(1), "does not act element by element"),
    (nn.GLU(1), "keep the shape"),
    (nn.Dropout(), "other values for the same input"),
    (nn.RReLU, "other values for the same input"),
    (nn.Threshold, "cannot be made without arguments"),
    (nn.BatchNorm1d, "cannot be made without arguments"),
    (nn.BatchNorm2d(8), "cannot be used"),
    (nn.PReLU(3), r"has 3 slopes and the layer 8 channels; use nn.PReLU\(\) or nn.PReLU\(8\)"),
    (torch.mean, "keep the shape"),
    (lambda x: x.clamp(min=0.0), "has a kink"),
    (nn.Hardshrink(), "has a kink"),
    (nn.Hardtanh(-2, 2), "has a kink"),
    ("softplus(200)", "too steep"),
    ("softplus(0)", "beta must be above 0"),
    ("elu(x)", "the alpha is not a number"),
    ("swoosh", "unknown activation 'swoosh'"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED)
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_what_cannot_be_part_of_a_layer_is_refused_when_it_is_made(given: Any, words: str, norm: str) -> None:
    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=words):
        NormActFactory(norm=norm)(8, given)
    assert torch.equal(before, torch.random.get_rng_state())


def test_something_that_is_no_function_is_refused_by_its_type() -> None:
    with pytest.raises(TypeError, match="is a int"):
        NormActFactory()(8, 3)


def test_a_module_with_hooks_is_refused() -> None:
    module = nn.ReLU()
    module.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="has hooks"):
        NormActFactory()(8, module)


@pytest.mark.parametrize("given", ["hard_swish", nn.PReLU, torch.sin])
def test_an_activation_without_a_fused_form_is_refused_where_that_form_is_asked_for(given: Any) -> None:
    with pytest.raises(ValueError, match="has no fused form"):
        NormActFactory(kernel="fused")(8, given)


@pytest.mark.parametrize("fields", [{"proxy": False}, {"proxy_method": "sampled"}])
def test_a_kink_is_no_reason_where_no_quadrature_is_needed(fields: Any) -> None:
    NormActFactory(**fields)(8, nn.Hardshrink())


@pytest.mark.parametrize("slopes", [1, 4])
@pytest.mark.parametrize("norm", ["group", "layer", "batch", "instance"])
def test_the_slope_of_prelu_is_learned_through_the_proxy_statistics_too(norm: str, slopes: int) -> None:
    layer = NormActFactory(norm=norm)(4, nn.PReLU(slopes, init=0.2)).double()
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    assert isinstance(layer.phi, nn.PReLU)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        layer.phi.weight[:] = 0.2
    named = NormActFactory(norm=norm)(4, "leaky_relu(0.2)").double()
    named.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "phi.weight"})
    torch.testing.assert_close(layer(x), named(x))

    def loss(slope: Tensor) -> Tensor:
        return (torch.func.functional_call(layer, {"phi.weight": slope}, (x,)) ** 3).mean()

    # Without the path through mean and 1/std the gradient would be another.
    assert torch.autograd.gradcheck(loss, (layer.phi.weight.detach().requires_grad_(),))


def test_a_parameter_of_a_strangers_activation_is_learned_through_the_proxy_statistics_too() -> None:
    layer = NormActFactory()(4, GatedBy()).double()
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64)

    def loss(b: Tensor) -> Tensor:
        return (torch.func.functional_call(layer, {"phi.b": b}, (x,)) ** 3).mean()

    assert torch.autograd.gradcheck(loss, (layer.phi.b.detach().requires_grad_(),))


def test_a_class_is_made_anew_for_each_layer_and_a_module_is_shared() -> None:
    shared = nn.PReLU()
    assert NormActFactory()(8, shared).phi is NormActFactory()(4, shared).phi
    assert NormActFactory()(8, nn.PReLU).phi is not NormActFactory()(4, nn.PReLU).phi


@pytest.mark.parametrize("given", [nn.PReLU, GatedBy, nn.PReLU(8)])
def test_layers_with_learned_activations_are_copied_saved_traced_folded_and_halved(given: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), NormActFactory(num_groups=2)(8, given), nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.fx.symbolic_trace(model)):
        assert torch.equal(again(x), expected)
    folded, _ = fold_for_inference(model)
    torch.testing.assert_close(folded(x), expected)
    with torch.no_grad():  # the folded network shares nothing with the original
        for parameter in model[1].phi.parameters():
            parameter.add_(1)
    torch.testing.assert_close(folded(x), expected)
    half = model[1](torch.randn(2, 8, 6, 6, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).dtype == torch.bfloat16


def test_a_layer_made_on_the_meta_device_takes_a_learned_activation() -> None:
    with torch.device("meta"):
        layers = [NormActFactory()(8, given) for given in (nn.PReLU, GatedBy, torch.sin, "relu")]
    assert all(parameter.is_meta for layer in layers for parameter in layer.parameters())


def test_proxy_statistics_of_prelu_are_those_of_its_slope() -> None:
    gamma, beta = torch.tensor([0.3, 2.0]), torch.tensor([-1.0, 0.4])
    expected = proxy_statistics("leaky_relu(0.25)", gamma, beta)
    torch.testing.assert_close(proxy_statistics(nn.PReLU(), gamma, beta), expected)
