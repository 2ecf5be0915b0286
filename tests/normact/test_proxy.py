"""Proxy statistics against high-precision integrals, hand-computed values and their own gradients."""

import math
from typing import Callable, Dict, List, Tuple

import mpmath as mp
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from normact import proxy_statistics
from normact.activations import ACTIVATION_NAMES
from normact.proxy import exact_moments

mp.mp.dps = 20

SELU_SCALE, SELU_ALPHA = mp.mpf("1.0507009873554804934"), mp.mpf("1.6732632423543772848")
# phi, its derivative, its kinks: written out, so that nothing of torch takes part.
Real = Callable[[mp.mpf], mp.mpf]
REFERENCES: Dict[str, Tuple[Real, Real, List[int]]] = {
    "identity": (lambda x: x, lambda x: mp.mpf(1), []),
    "relu": (lambda x: max(x, mp.mpf(0)), lambda x: mp.mpf(x > 0), [0]),
    "leaky_relu": (lambda x: x if x > 0 else x / 100, lambda x: mp.mpf(1) if x > 0 else mp.mpf("0.01"), [0]),
    "leaky_relu(0.2)": (lambda x: x if x > 0 else x / 5, lambda x: mp.mpf(1) if x > 0 else mp.mpf("0.2"), [0]),
    "relu6": (lambda x: min(max(x, mp.mpf(0)), mp.mpf(6)), lambda x: mp.mpf(0 < x < 6), [0, 6]),
    "hard_swish": (
        lambda x: x * min(max(x + 3, mp.mpf(0)), mp.mpf(6)) / 6,
        lambda x: mp.mpf(0) if x < -3 else (mp.mpf(1) if x > 3 else (2 * x + 3) / 6),
        [-3, 3],
    ),
    "elu": (lambda x: x if x > 0 else mp.expm1(x), lambda x: mp.mpf(1) if x > 0 else mp.exp(x), [0]),
    "selu": (
        lambda x: SELU_SCALE * (x if x > 0 else SELU_ALPHA * mp.expm1(x)),
        lambda x: SELU_SCALE * (mp.mpf(1) if x > 0 else SELU_ALPHA * mp.exp(x)),
        [0],
    ),
    "elu(0.5)": (lambda x: x if x > 0 else mp.expm1(x) / 2, lambda x: mp.mpf(1) if x > 0 else mp.exp(x) / 2, [0]),
    "celu(2.0)": (lambda x: x if x > 0 else 2 * mp.expm1(x / 2), lambda x: mp.mpf(1) if x > 0 else mp.exp(x / 2), [0]),
    "hard_sigmoid": (
        lambda x: min(max(x + 3, mp.mpf(0)), mp.mpf(6)) / 6,
        lambda x: mp.mpf(abs(x) < 3) / 6,
        [-3, 3],
    ),
    "hard_tanh": (lambda x: min(max(x, mp.mpf(-1)), mp.mpf(1)), lambda x: mp.mpf(abs(x) < 1), [-1, 1]),
    "silu": (
        lambda x: x / (1 + mp.exp(-x)),
        lambda x: 1 / (1 + mp.exp(-x)) * (1 + x * (1 - 1 / (1 + mp.exp(-x)))),
        [],
    ),
    "gelu": (lambda x: x * mp.ncdf(x), lambda x: mp.ncdf(x) + x * mp.npdf(x), []),
}
GRID = [(-5.0, 5.0), (5.0, 5.0), (0.0, 1.0), (0.7, 0.05), (-1.0, 1.0), (-5.0, 1.0), (0.7, 2.5)]
# math: |variance| and gradient errors of the 129-node trapezoid in float64 are 3e-12 and 2e-11; doubled here.
FLOAT64 = {"mean": 1e-12, "variance": 6e-12, "gradient": 5e-11}
# Rounding of means up to 5 and variances up to 25 in float32: a few units of 3e-7 and 1.5e-6. Hard-swish subtracts
# terms of the size of its variance from each other and loses a factor of two more; SELU's variance is larger, up to 27.
FLOAT32 = {"mean": 2e-6, "variance": 6e-6}
FLOAT32_LARGER_VARIANCE = 1.2e-5


def integrals(name: str, m: float, s: float) -> Dict[str, float]:
    """Return mean and variance of phi(m + s z), and their derivatives in m and s, by adaptive quadrature."""
    phi, derivative, kinks = REFERENCES[name]
    mean_x, std_x = mp.mpf(m), mp.mpf(s)
    inner = [(kink - mean_x) / std_x for kink in kinks]
    points = sorted([mp.mpf(z) for z in range(-12, 13, 3)] + [z for z in inner if abs(z) < 12])

    def expect(g: Callable[[mp.mpf, mp.mpf], mp.mpf]) -> mp.mpf:
        return mp.quad(lambda z: g(mean_x + std_x * z, z) * mp.npdf(z), points)

    mean = expect(lambda x, z: phi(x))
    result = {
        "mean": mean,
        "variance": expect(lambda x, z: (phi(x) - mean) ** 2),
        "mean_m": expect(lambda x, z: derivative(x)),
        "mean_s": expect(lambda x, z: derivative(x) * z),
        "variance_m": 2 * expect(lambda x, z: (phi(x) - mean) * derivative(x)),
        "variance_s": 2 * expect(lambda x, z: (phi(x) - mean) * derivative(x) * z),
    }
    return {key: float(value) for key, value in result.items()}


def mean_and_variance(name: str, gamma: Tensor, beta: Tensor, **options: object) -> Tuple[Tensor, Tensor]:
    mean, inverse_std = proxy_statistics(name, gamma, beta, eps=0.0, **options)
    return mean, inverse_std**-2


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_exact_statistics_and_gradients_agree_with_high_precision_integrals(name: str) -> None:
    beta = torch.tensor([b for b, _ in GRID], dtype=torch.float64, requires_grad=True)
    gamma = torch.tensor([g for _, g in GRID], dtype=torch.float64, requires_grad=True)
    mean, inverse_std = proxy_statistics(name, gamma, beta)
    variance = inverse_std**-2 - 0.03
    # The identity's mean does not know gamma, nor its variance beta: those derivatives are 0.
    mean_m, mean_s, variance_m, variance_s = (
        torch.zeros_like(beta) if gradient is None else gradient
        for value in (mean, variance)
        for gradient in torch.autograd.grad(value.sum(), (beta, gamma), retain_graph=True, allow_unused=True)
    )
    for i, (b, g) in enumerate(GRID):
        expected = integrals(name, b, g)
        assert mean[i].item() == pytest.approx(expected["mean"], abs=FLOAT64["mean"])
        assert variance[i].item() == pytest.approx(expected["variance"], abs=FLOAT64["variance"])
        for key, value in zip(
            ("mean_m", "mean_s", "variance_m", "variance_s"), (mean_m, mean_s, variance_m, variance_s)
        ):
            assert value[i].item() == pytest.approx(expected[key], abs=FLOAT64["gradient"]), (key, b, g)


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_float32_statistics_agree_with_float64_to_rounding(name: str) -> None:
    grid = torch.cartesian_prod(torch.linspace(-5, 5, 201), torch.linspace(1e-6, 5, 101))
    beta, gamma = grid[:, 0].contiguous(), grid[:, 1].contiguous()
    mean, variance = exact_moments(name, beta, gamma)
    exact_mean, exact_variance = exact_moments(name, beta.double(), gamma.double())
    bound = FLOAT32_LARGER_VARIANCE if name in ("hard_swish", "selu") else FLOAT32["variance"]
    assert (mean - exact_mean).abs().max() < FLOAT32["mean"]
    assert (variance - exact_variance).abs().max() < bound
    # Where the variance is small, its absolute error counts against eps.
    inverse_std = proxy_statistics(name, gamma, beta)[1]
    exact_inverse_std = proxy_statistics(name, gamma.double(), beta.double())[1]
    assert (inverse_std / exact_inverse_std - 1).abs().max() < 3e-5


AT_INIT = [
    # activation, mean, variance, 1 / sqrt(variance + 0.03), and the same from 200 mid-quantile nodes where known
    ("identity", 0.0, 1.0, 0.985329, None),
    ("relu", 0.398942, 0.340845, 1.64212, (0.39845, 0.33803, 1.64837)),
    ("silu", 0.206621, 0.313083, 1.70726, (0.20605, 0.31000, 1.71498)),
    ("gelu", 0.282095, 0.345644, 1.63159, None),
    ("hard_swish", 0.166217, 0.303939, 1.730480, None),
    ("leaky_relu", 0.394953, 0.344062, 1.635039, None),
]


@pytest.mark.parametrize(("name", "mean", "variance", "inverse_std", "sampled"), AT_INIT)
def test_values_at_initialization(
    name: str, mean: float, variance: float, inverse_std: float, sampled: Tuple[float, float, float]
) -> None:
    one, zero = torch.ones(1), torch.zeros(1)
    got_mean, got_inverse_std = proxy_statistics(name, one, zero)
    # Half a unit of the last digit that is written down.
    assert got_mean.item() == pytest.approx(mean, abs=6e-7)
    assert got_inverse_std.item() ** -2 - 0.03 == pytest.approx(variance, abs=1e-6)
    assert got_inverse_std.item() == pytest.approx(inverse_std, abs=6e-6)
    if sampled is not None:
        got_mean, got_inverse_std = proxy_statistics(name, one, zero, method="sampled")
        assert got_mean.item() == pytest.approx(sampled[0], abs=6e-6)
        assert got_inverse_std.item() ** -2 - 0.03 == pytest.approx(sampled[1], abs=6e-6)
        assert got_inverse_std.item() == pytest.approx(sampled[2], abs=6e-6)


def test_two_samples_by_hand() -> None:
    # Quartiles of the normal: -0.6744898 and +0.6744898. gamma 2, beta 1: X = -0.3489796 and 2.3489796.
    mean, variance = mean_and_variance(
        "relu", torch.tensor([2.0]), torch.tensor([1.0]), method="sampled", num_samples=2
    )
    assert mean.item() == pytest.approx(1.1744898, abs=1e-6)
    assert variance.item() == pytest.approx(1.1744898**2, rel=1e-6)


@pytest.mark.parametrize("name", [*ACTIVATION_NAMES, "leaky_relu(0.2)", "elu(0.5)", "celu(2.0)"])
@pytest.mark.parametrize("method", ["exact", "sampled"])
def test_gradients_in_all_four_inputs(name: str, method: str) -> None:
    # Few nodes, none of which a finite difference carries over a kink.
    num_samples = 7 if method == "sampled" else None
    inputs = [
        torch.tensor(values, dtype=torch.float64, requires_grad=True)
        for values in ([1.3, -0.7, 0.21], [0.4, -1.1, 2.3], [0.15, -0.3, 0.2], [-0.2, 0.1, 0.35])
    ]

    def statistics(*tensors: Tensor) -> Tuple[Tensor, Tensor]:
        return proxy_statistics(name, *tensors, method=method, num_samples=num_samples)

    assert torch.autograd.gradcheck(statistics, inputs, atol=1e-6)


@given(
    gamma=st.floats(-4, 4).filter(lambda g: abs(g) > 1e-3),
    beta=st.floats(-5, 5),
    proxy_beta=st.floats(-1, 1),
    proxy_gamma=st.floats(-0.5, 0.5),
    name=st.sampled_from(sorted(REFERENCES)),
)
def test_proxy_parameters_only_move_the_gaussian(
    gamma: float, beta: float, proxy_beta: float, proxy_gamma: float, name: str
) -> None:
    """gamma N(proxy_beta, (1 + proxy_gamma)^2) + beta is N(beta + gamma proxy_beta, (gamma (1 + proxy_gamma))^2)."""
    values = [torch.tensor([v], dtype=torch.float64) for v in (gamma, beta, proxy_beta, proxy_gamma)]
    mean, inverse_std = proxy_statistics(name, *values)
    moved = torch.tensor([gamma * (1 + proxy_gamma)], dtype=torch.float64).abs()
    expected = proxy_statistics(name, moved, torch.tensor([beta + gamma * proxy_beta], dtype=torch.float64))
    torch.testing.assert_close((mean, inverse_std), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*ACTIVATION_NAMES, "leaky_relu(0.2)", "elu(0.5)", "celu(2.0)"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_inputs_stay_finite_with_finite_gradients(name: str, dtype: torch.dtype) -> None:
    betas, gammas = (-1e4, -40.0, 0.0, 40.0, 1e4), (0.0, 1e-12, 1e-6, 1e-3, 100.0)
    pairs = [(b, g) for b in betas for g in gammas]
    beta = torch.tensor([b for b, _ in pairs], dtype=dtype, requires_grad=True)
    gamma = torch.tensor([g for _, g in pairs], dtype=dtype, requires_grad=True)
    proxies = [torch.zeros(len(pairs), dtype=dtype, requires_grad=True) for _ in range(2)]
    mean, inverse_std = proxy_statistics(name, gamma, beta, *proxies)
    (mean.sum() + inverse_std.sum()).backward()
    for tensor in (mean, inverse_std, beta.grad, gamma.grad, proxies[0].grad, proxies[1].grad):
        assert tensor is not None and tensor.isfinite().all()
    assert (inverse_std <= 1 / math.sqrt(0.03) * (1 + 1e-6)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["relu", "hard_swish", "silu"])
@pytest.mark.parametrize("method", ["exact", "sampled"])
def test_statistics_are_float32_under_any_compute_type(dtype: torch.dtype, name: str, method: str) -> None:
    gamma = torch.tensor([0.5, 1.5, -2.0], dtype=dtype)
    beta = torch.tensor([0.25, -1.0, 3.0], dtype=dtype)  # exact in every type
    expected = proxy_statistics(name, gamma.float(), beta.float(), method=method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = proxy_statistics(name, gamma, beta, method=method)
    for value, reference in zip(got, expected):
        assert value.dtype == torch.float32
        assert torch.equal(value, reference)


def test_float64_in_any_input_gives_float64() -> None:
    mean, inverse_std = proxy_statistics("silu", torch.ones(2), torch.zeros(2, dtype=torch.float64))
    assert mean.dtype == inverse_std.dtype == torch.float64


def test_missing_inputs_are_zero() -> None:
    gamma, zero = torch.tensor([0.3, 2.0]), torch.zeros(2)
    assert torch.equal(proxy_statistics("gelu", gamma)[1], proxy_statistics("gelu", gamma, zero, zero, zero)[1])


def test_a_function_gives_what_its_name_gives() -> None:
    gamma, beta = torch.tensor([0.3, 2.0]), torch.tensor([-1.0, 0.4])
    torch.testing.assert_close(proxy_statistics(F.silu, gamma, beta), proxy_statistics("silu", gamma, beta))


def test_sampling_approaches_the_exact_value_with_more_samples() -> None:
    gamma, beta = torch.tensor([1.7], dtype=torch.float64), torch.tensor([-0.4], dtype=torch.float64)
    exact = proxy_statistics("relu", gamma, beta)[1]
    errors = [
        (proxy_statistics("relu", gamma, beta, method="sampled", num_samples=n)[1] - exact) for n in (50, 200, 3200)
    ]
    # Underestimated tails: 1/std is too large, and less so with more samples.
    assert errors[0] > errors[1] > errors[2] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"activation": "rleu"}, "relu.*silu"),
        ({"activation": "leaky_relu(x)"}, "slope"),
        ({"method": "exactly"}, "exact, sampled"),
        ({"num_samples": 10}, "no effect"),
        ({"method": "sampled", "num_samples": 0}, "at least 1"),
    ],
)
def test_wrong_arguments_are_refused_with_the_choices(arguments: Dict[str, object], words: str) -> None:
    options = {"activation": "relu", **arguments}
    with pytest.raises(ValueError, match=words):
        proxy_statistics(options.pop("activation"), torch.ones(1), **options)
