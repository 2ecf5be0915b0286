"""The layer as it is made by default, under every transform of torch: against the reference in float64, in silence."""

import copy
import warnings
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jvp, vmap

from normact import NormActFactory, has_fused_kernels

# Float32 sums over up to 2000 values, relative to the largest value of a result.
TOLERANCE = 1e-5
KINDS: List[Dict[str, Any]] = [
    {"norm": "group", "num_groups": 2},
    {"norm": "group", "num_groups": 2, "grouping": "strided"},
    {"norm": "layer"},
    {"norm": "instance"},
    {"norm": "group", "num_groups": 3, "proxy": False},
]


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*torch.jit")  # torch's own, at its first forward derivative
        yield


def pair(activation: Any, fields: Dict[str, Any]) -> Tuple[nn.Module, nn.Module]:
    """Return the default layer, and the reference in float64 with the same parameters."""
    torch.manual_seed(0)
    layer = NormActFactory(**fields)(6, activation)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    reference = NormActFactory(**fields, kernel="reference")(6, activation).double()
    reference.load_state_dict(layer.state_dict())
    return layer, reference


def images() -> Tensor:
    return torch.randn(3, 6, 5, 4, generator=torch.Generator().manual_seed(1))


def agree(of: Callable[[nn.Module, Tensor], List[Tensor]], activation: Any, fields: Dict[str, Any]) -> None:
    layer, reference = pair(activation, fields)
    results, expected = of(layer, images()), of(reference, images().double())
    assert len(results) == len(expected) > 0
    for result, wanted in zip(results, expected):
        assert result.dtype == torch.float32
        assert (result - wanted).abs().max() <= TOLERANCE * wanted.abs().max().clamp(min=1.0)


def penalty(layer: nn.Module, x: Tensor) -> List[Tensor]:
    """Gradients of a gradient penalty."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    (gradient.square().sum() + layer(x).mean()).backward()
    return [x.grad, *[p.grad for p in layer.parameters()]]  # type: ignore[list-item]


def adapted(layer: nn.Module, x: Tensor) -> List[Tensor]:
    """MAML: the gradient of a loss after a step of gradient descent, by the parameters before it."""
    named = dict(layer.named_parameters())
    gradients = torch.autograd.grad(layer(x).square().mean(), list(named.values()), create_graph=True)
    stepped = {name: value - 0.1 * gradient for (name, value), gradient in zip(named.items(), gradients)}
    functional_call(layer, stepped, (x.flip(0),)).pow(3).mean().backward()
    return [p.grad for p in layer.parameters()]  # type: ignore[misc]


def per_sample(layer: nn.Module, x: Tensor) -> List[Tensor]:
    named = {name: value.detach() for name, value in layer.named_parameters()}
    gradients = vmap(grad(lambda p, one: functional_call(layer, p, (one[None],)).pow(2).sum()), (None, 0))(named, x)
    return list(gradients.values())


def forward_derivative(layer: nn.Module, x: Tensor) -> List[Tensor]:
    return list(jvp(layer, (x,), (x.sin(),)))


def forward_derivative_by_parameters(layer: nn.Module, x: Tensor) -> List[Tensor]:
    named = {name: value.detach() for name, value in layer.named_parameters()}
    tangents = {name: torch.cos(value) for name, value in named.items()}
    return list(jvp(lambda p: functional_call(layer, p, (x,)), (named,), (tangents,)))


def dual(layer: nn.Module, x: Tensor) -> List[Tensor]:
    with torch.autograd.forward_ad.dual_level():
        return [torch.autograd.forward_ad.unpack_dual(layer(torch.autograd.forward_ad.make_dual(x, x.sin()))).tangent]


def batches(layer: nn.Module, x: Tensor) -> List[Tensor]:
    with torch.no_grad():
        return [vmap(layer)(torch.stack([x, x.flip(0)])), vmap(layer, in_dims=2)(torch.stack([x, 2 * x], 2))]


def ensemble(layer: nn.Module, x: Tensor) -> List[Tensor]:
    members = {name: torch.stack([p.detach(), 1.5 * p.detach()]) for name, p in layer.named_parameters()}
    return [vmap(lambda p: functional_call(layer, p, (x,)))(members)]


def curvature(layer: nn.Module, x: Tensor) -> List[Tensor]:
    """Return a block of the Hessian, forward over reverse."""
    named = {name: value.detach() for name, value in layer.named_parameters()}
    return [jacfwd(grad(lambda w: functional_call(layer, {**named, "weight": w}, (x,)).pow(3).sum()))(named["weight"])]  # type: ignore[misc]


TRANSFORMS = [
    penalty, adapted, per_sample, forward_derivative, forward_derivative_by_parameters, dual, batches, ensemble,
    curvature,
]  # fmt: skip


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("fields", KINDS, ids=["group", "strided", "layer", "instance", "without-pn"])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_the_default_layer_is_exact_under(transform: Any, fields: Dict[str, Any], activation: str) -> None:
    agree(transform, activation, fields)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("activation", [nn.PReLU, "hard_swish", torch.sin])
def test_so_is_a_layer_whose_activation_has_no_fused_form(transform: Any, activation: Any) -> None:
    agree(transform, activation, {"num_groups": 2})


@pytest.mark.parametrize("transform", [penalty, adapted, batches, ensemble])
def test_the_fused_kernels_themselves_follow_transforms_of_the_reverse_mode(transform: Any) -> None:
    NormActFactory()(6, "relu")(images())
    if not has_fused_kernels():
        pytest.skip("no fused kernels here")
    torch.manual_seed(0)
    fused, reference = (NormActFactory(num_groups=2, kernel=kernel)(6, "silu") for kernel in ("fused", "reference"))
    for result, expected in zip(transform(fused, images()), transform(reference.double(), images().double())):
        assert (result - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1.0)


def test_third_derivatives_are_there_too() -> None:
    layer, reference = pair("silu", {"num_groups": 2})
    results = []
    for module, x in ((layer, images()), (reference, images().double())):
        x.requires_grad_()
        value = module(x).pow(3).sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = (gradient * torch.cos(torch.arange(gradient.numel()).view_as(gradient))).sum()
        results.append(value)
    # A sum of 360 third derivatives of both signs.
    torch.testing.assert_close(results[0].double(), results[1], rtol=1e-3, atol=1e-3)


SHAPES = [(c, s) for c in (2, 6, 18, 100) for s in ((), (1, 1), (7,), (7, 7), (200,), (211, 1), (2, 5, 10), (1, 1, 7))]


@pytest.mark.parametrize(("channels", "spatial"), SHAPES)
@pytest.mark.parametrize("activation", ["relu", "gelu", "hard_swish"])
def test_every_number_of_dims_pixels_and_channels_is_near_float64(
    channels: int, spatial: Tuple[int, ...], activation: str
) -> None:
    factory = NormActFactory(norm="layer") if not spatial or spatial == (1, 1) else NormActFactory(max_groups=8)
    layer = factory(channels, activation)
    x = (3 * torch.randn(2, channels, *spatial, generator=torch.Generator().manual_seed(2)) + 1).requires_grad_()
    exact = x.detach().double().requires_grad_()
    out, expected = layer(x), copy.deepcopy(layer).double()(exact)
    # Values up to 10; a group of few values divides by a deviation that its rounding enters, too.
    assert (out - expected).abs().max() < 2e-5
    out.pow(2).sum().backward()
    expected.pow(2).sum().backward()
    assert (x.grad - exact.grad).abs().max() < 1e-4 * exact.grad.abs().max().clamp(min=1.0)
