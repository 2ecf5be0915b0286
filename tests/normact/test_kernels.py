"""The fused kernels against an independent float64 computation."""

from __future__ import annotations

from typing import Tuple

import pytest
import torch
import torch.nn.functional as F
from kernel_reference import (
    ACTIVATIONS,
    EPS,
    FLOAT32_TOLERANCE,
    NAMES,
    PROXY_EPS,
    check_against_float64,
    example,
    fused,
    proxy_in_float64,
    reference,
    scaled_difference,
)

from normact import kernels

pytestmark = pytest.mark.usefixtures("built_kernels")


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
# One image of 90 x 90: whether backward keeps d depends on the size of a unit, in NHWC that on the number of threads.
@pytest.mark.parametrize("images, size", [(1, 24), (5, 24), (1, 90)])
def test_results_do_not_depend_on_the_number_of_threads(layout: str, images: int, size: int) -> None:
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            tensors = example((images, 192, size, size), 4, layout=layout)
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
    got = kernels.fused_proxy_statistics(activation, *leaves, PROXY_EPS)  # type: ignore[call-arg]
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
