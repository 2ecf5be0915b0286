"""The fused kernels against an independent float64 computation."""

from __future__ import annotations

from typing import Dict, Optional, Tuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from proxynorm import kernels

NAMES = ("x", "weight", "bias", "proxy_beta", "proxy_gamma")
ACTIVATIONS = {"identity": lambda z: z, "relu": F.relu, "silu": F.silu, "gelu": F.gelu}
EPS, PROXY_EPS = 1e-5, 0.03
# Float32 carries 6e-8; a result is a few such roundings, judged against the tensor's largest element.
FLOAT32_TOLERANCE = 1e-5
# One bfloat16 rounding of the result is half of 2^-7.
BFLOAT16_TOLERANCE = 2.0**-8


@pytest.fixture(scope="module", autouse=True)
def built_kernels() -> None:
    reason = kernels.why_not_fused(torch.zeros(1, 1, 1, 1), 1, "contiguous", "relu")
    if reason is not None:
        pytest.skip(reason)


def group_norm_in_float64(x: Tensor, num_groups: int, grouping: str) -> Tensor:
    """Written from the definition, with no function of torch.nn."""
    images, channels = x.shape[:2]
    members = torch.arange(channels)
    group_of = members % num_groups if grouping == "strided" else members // (channels // num_groups)
    y = torch.empty_like(x)
    for group in range(num_groups):
        part = x[:, group_of == group].reshape(images, -1)
        mean = part.mean(1, keepdim=True)
        var = ((part - mean) ** 2).mean(1, keepdim=True)
        y[:, group_of == group] = ((part - mean) / torch.sqrt(var + EPS)).reshape(x[:, group_of == group].shape)
    return y


def proxy_in_float64(
    activation: str, gamma: Tensor, beta: Tensor, proxy_beta: Tensor, proxy_gamma: Tensor
) -> Tuple[Tensor, Tensor]:
    """ReLU from the truncated Gaussian's two moments; the others by a midpoint rule of 1000 nodes over [-9, 9]."""
    m, s = beta + gamma * proxy_beta, (gamma * (1 + proxy_gamma)).abs()
    if activation == "relu":
        normal = torch.distributions.Normal(0.0, 1.0)
        above, density = normal.cdf(m / s), torch.exp(normal.log_prob(m / s))
        mean, square = m * above + s * density, (m * m + s * s) * above + m * s * density
        return mean, 1 / torch.sqrt(square - mean**2 + PROXY_EPS)
    z = (torch.arange(1000, dtype=torch.float64) + 0.5) * (18 / 1000) - 9
    weight = torch.exp(-0.5 * z * z)
    weight = (weight / weight.sum())[:, None]
    value = ACTIVATIONS[activation](m + s * z[:, None])
    mean = (weight * value).sum(0)
    return mean, 1 / torch.sqrt((weight * (value - mean) ** 2).sum(0) + PROXY_EPS)


def reference(
    tensors: Dict[str, Tensor], activation: str, num_groups: int, grouping: str, proxy: bool
) -> Tuple[Tensor, Dict[str, Tensor]]:
    """Output and leaves of a float64 computation of the same numbers."""
    leaves = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
    shape = [1, -1] + [1] * (tensors["x"].dim() - 2)
    y = group_norm_in_float64(leaves["x"], num_groups, grouping)
    out = ACTIVATIONS[activation](leaves["weight"].reshape(shape) * y + leaves["bias"].reshape(shape))
    if proxy:
        mean, inverse_std = proxy_in_float64(activation, *(leaves[name] for name in NAMES[1:]))
        out = (out - mean.reshape(shape)) * inverse_std.reshape(shape)
    return out, leaves


def fused(
    tensors: Dict[str, Tensor], activation: str, num_groups: int, grouping: str, proxy: bool, **options: bool
) -> Tensor:
    parameters = [tensors[name] for name in NAMES[1:]]
    mean, inverse_std = kernels.fused_proxy_statistics(activation, *parameters, PROXY_EPS) if proxy else (None, None)
    return kernels.fused_norm_act(
        tensors["x"], parameters[0], parameters[1], mean, inverse_std,
        num_groups=num_groups, grouping=grouping, activation=activation, eps=EPS, **options,
    )  # fmt: skip


def example(
    shape: Tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32, layout: str = "contiguous"
) -> Dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator).mul(1.5).add(0.3).to(dtype)
    if layout == "channels_last":
        x = x.contiguous(
            memory_format={4: torch.channels_last, 5: torch.channels_last_3d}.get(len(shape), torch.contiguous_format)
        )
    elif layout == "transposed":
        x = x.transpose(0, 1).contiguous().transpose(0, 1)
    channels = shape[1]
    rows = torch.randn(4, channels, generator=generator)
    tensors = {
        "x": x,
        "weight": 1 + 0.3 * rows[0],
        "bias": 0.3 * rows[1],
        "proxy_beta": 0.2 * rows[2],
        "proxy_gamma": 0.2 * rows[3],
    }
    return {name: t.detach().requires_grad_() for name, t in tensors.items()}


def scaled_difference(got: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest element, or over 1, the size of the gradient fed in: some sums cancel."""
    assert got.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    with torch.no_grad():
        return float((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1.0))


def check_against_float64(
    tensors: Dict[str, Tensor],
    activation: str,
    num_groups: int,
    grouping: str = "contiguous",
    proxy: bool = True,
    tolerance: Optional[float] = None,
) -> None:
    dtype = tensors["x"].dtype
    tolerance = tolerance or (FLOAT32_TOLERANCE if dtype == torch.float32 else BFLOAT16_TOLERANCE)
    out = fused(tensors, activation, num_groups, grouping, proxy)
    expected, leaves = reference(tensors, activation, num_groups, grouping, proxy)
    assert out.dtype == dtype
    assert scaled_difference(out, expected) <= tolerance
    seed = torch.Generator().manual_seed(7)
    gradient = torch.randn(out.shape, generator=seed).to(dtype)
    out.backward(gradient)
    expected.backward(gradient.double())
    for name in NAMES:
        if not proxy and name.startswith("proxy"):
            continue
        got = tensors[name].grad
        assert got is not None and got.dtype == tensors[name].dtype, name
        # A parameter's gradient sums what x's rounding left: float32 whatever the type of x.
        limit = tolerance if name == "x" else FLOAT32_TOLERANCE
        assert scaled_difference(got, leaves[name].grad) <= limit, name


CASES = [
    # shape, num_groups, layout
    ((2, 16, 9, 7), 4, "contiguous"),
    ((2, 16, 9, 7), 4, "channels_last"),
    ((3, 32, 5, 5), 1, "contiguous"),
    ((3, 32, 5, 5), 1, "channels_last"),
    ((2, 6, 4, 4), 6, "contiguous"),
    ((2, 6, 4, 4), 6, "channels_last"),
    ((2, 64, 40, 40), 8, "contiguous"),
    ((2, 192, 20, 20), 8, "channels_last"),
    ((2, 24, 33, 17), 3, "transposed"),
    ((4, 40), 5, "contiguous"),
    ((2, 12, 30), 4, "contiguous"),
    ((2, 8, 3, 4, 5), 2, "contiguous"),
    ((2, 8, 3, 4, 5), 2, "channels_last"),
    ((2, 20, 1, 1), 4, "contiguous"),
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape, num_groups, layout", CASES)
def test_output_and_all_gradients_equal_float64(
    shape: Tuple[int, ...], num_groups: int, layout: str, activation: str
) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for grouping in ("contiguous", "strided"):
            for proxy in (True, False):
                check_against_float64(example(shape, 1, dtype, layout), activation, num_groups, grouping, proxy)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_layout_and_type_equals_float64(data: st.DataObject) -> None:
    groups, size = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 9))
    spatial = data.draw(st.lists(st.integers(1, 11), min_size=0, max_size=3))
    shape = (data.draw(st.integers(1, 3)), groups * size, *spatial)
    if shape[1] // groups * torch.Size(spatial).numel() == 1:
        shape = (shape[0], groups * 2, *spatial)
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16]))
    layout = data.draw(st.sampled_from(["contiguous", "channels_last", "transposed"]))
    tensors = example(shape, data.draw(st.integers(0, 99)), dtype, layout)
    grouping, proxy = data.draw(st.sampled_from(["contiguous", "strided"])), data.draw(st.booleans())
    # Groups of two values divide by deviations near sqrt(eps): every rounding is multiplied by up to 300.
    few = shape[1] // groups * torch.Size(spatial).numel() < 8
    tolerance = 300 * FLOAT32_TOLERANCE if few and dtype == torch.float32 else 0.02 if few else None
    if few:
        out = fused(tensors, "relu", groups, grouping, proxy)
        assert scaled_difference(out, reference(tensors, "relu", groups, grouping, proxy)[0]) <= (tolerance or 0)
        return
    check_against_float64(tensors, data.draw(st.sampled_from(sorted(ACTIVATIONS))), groups, grouping, proxy)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_a_mean_of_ten_thousand_deviations_costs_no_accuracy(activation: str, layout: str) -> None:
    tensors = example((2, 32, 23, 19), 2)
    with torch.no_grad():
        tensors["x"].add_(1e4 * (1 + torch.arange(32.0) / 32)[:, None, None])
    tensors["x"] = tensors["x"].detach().contiguous(
        memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format
    ).requires_grad_()  # fmt: skip
    check_against_float64(tensors, activation, 32)


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e6, 1e15])
def test_huge_and_tiny_inputs_equal_float64(scale: float) -> None:
    tensors = example((2, 16, 9, 9), 3)
    tensors["x"] = (tensors["x"].detach() * scale).requires_grad_()
    out = fused(tensors, "silu", 4, "contiguous", True)
    assert scaled_difference(out, reference(tensors, "silu", 4, "contiguous", True)[0]) <= FLOAT32_TOLERANCE


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_constant_group_normalizes_to_zero(layout: str) -> None:
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.full((2, 32, 17, 5), 123.456).contiguous(memory_format=memory_format)
    out = kernels.fused_norm_act(
        x, None, None, None, None, num_groups=4, grouping="contiguous", activation="identity", eps=EPS
    )
    # The mean of equal numbers is that number to half of its last place, 4e-6; 1 / sqrt(eps) = 316 multiplies it.
    assert out.abs().max() <= 316 * 4e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_and_infinity_spoil_their_group_alone_as_in_torch(value: float, layout: str) -> None:
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.randn(2, 16, 7, 7, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=memory_format)
    x[1, 5, 3, 3] = value
    for dtype in (torch.float32, torch.bfloat16):
        expected = F.relu(F.group_norm(x.to(dtype), 4))
        for activation in ("relu", "silu", "gelu"):
            out = kernels.fused_norm_act(
                x.to(dtype), None, None, None, None, num_groups=4, grouping="contiguous", activation=activation, eps=EPS
            )
            assert torch.equal(out.isnan(), expected.isnan()), activation


@pytest.mark.parametrize("shape", [(0, 8, 4, 4), (2, 8, 0, 4), (0, 8)])
def test_an_empty_batch_or_image_gives_an_empty_output_and_zero_gradients(shape: Tuple[int, ...]) -> None:
    tensors = example(shape)
    out = fused(tensors, "relu", 2, "contiguous", True)
    out.sum().backward()
    assert out.shape == shape and tensors["x"].grad is not None and tensors["x"].grad.shape == shape
    assert all(not tensors[name].grad.any() for name in NAMES[1:])


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("images", [1, 5])
def test_results_do_not_depend_on_the_number_of_threads(layout: str, images: int) -> None:
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            tensors = example((images, 192, 24, 24), 4, layout=layout)
            out = fused(tensors, "silu", 3, "contiguous", True)
            out.backward(torch.ones_like(out) * out.detach())
            results.append([out] + [tensors[name].grad for name in NAMES])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_proxy_statistics_equal_float64_over_a_wide_range_of_parameters(activation: str) -> None:
    gamma, beta = torch.meshgrid(torch.linspace(-5, 5, 24), torch.linspace(-5, 5, 21), indexing="ij")
    rows = [gamma.flatten(), beta.flatten(), 0.3 * torch.ones(gamma.numel()), 0.2 * torch.ones(gamma.numel())]
    leaves = [row.clone().requires_grad_() for row in rows]
    exact = [row.double().requires_grad_() for row in rows]
    got = kernels.fused_proxy_statistics(activation, *leaves, PROXY_EPS)
    expected = proxy_in_float64(activation, *exact)
    seed = torch.Generator().manual_seed(1)
    weights = [torch.randn(gamma.numel(), generator=seed) for _ in range(2)]
    sum((g * w).sum() for g, w in zip(got, weights)).backward()
    sum((e * w.double()).sum() for e, w in zip(expected, weights)).backward()
    for g, e in zip(got, expected):
        assert scaled_difference(g, e) <= FLOAT32_TOLERANCE
    # The slope of 1/std in the variance is up to 0.5 / 0.03^1.5 = 96: it multiplies roundings of values up to 5, 3e-7.
    for leaf, reference_leaf in zip(leaves, exact):
        assert scaled_difference(leaf.grad, reference_leaf.grad) <= 1.5e-4


def test_reasons_not_to_use_the_fused_form_are_given_in_plain_words() -> None:
    x = torch.zeros(2, 8, 4, 4)
    assert kernels.why_not_fused(x, 4, "strided", "gelu") is None
    assert "float64" in (kernels.why_not_fused(x.double(), 4, "contiguous", "relu") or "")
    assert "'mish'" in (kernels.why_not_fused(x, 4, "contiguous", "mish") or "")
    assert "does not divide 8" in (kernels.why_not_fused(x, 3, "contiguous", "relu") or "")
    assert "meta" in (kernels.why_not_fused(x.to("meta"), 4, "contiguous", "relu") or "")
