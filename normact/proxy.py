"""Proxy statistics: mean and 1/std of a channel's activation under its Gaussian proxy variable.

    X_c = gamma_c Y_c + beta_c,   Y_c ~ N(proxy_beta_c, (1 + proxy_gamma_c)^2)
    so X_c ~ N(m, s^2) with m = beta + gamma * proxy_beta and s = |gamma (1 + proxy_gamma)|
    mean_c = E[phi(X_c)],   inverse_std_c = 1 / sqrt(Var[phi(X_c)] + eps)

Everything here is a plain formula on (C,) or (nodes, C) tensors: no branch on a value, no custom
backward, no boolean indexing, so that a tracing compiler sees ordinary elementwise operations.

Source: Labatie et al., "Proxy-Normalizing Activations to Match Batch Normalization while Removing
Batch Dependence", 2021, section 5, Eq. 7.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from normact.activations import Activation, activation_function, parse_activation

DEFAULT_PROXY_EPS = 0.03
DEFAULT_NUM_SAMPLES = 200
PROXY_METHODS = ("exact", "sampled")

# Below this a channel is a constant; the clamp keeps m / s finite and changes phi's variance by at most 1e-12.
MIN_PROXY_STD = 1e-6
# exp(-40^2 / 2) is 0 in float64 too, so a larger |m / s| cannot change a result, and its square could overflow.
_MAX_STANDARDIZED = 40.0
# Far below, E_k is 0, and rounding makes torch's derivative of log_ndtr infinite.
_MIN_LOG_NDTR = -1e4
# Trapezoid over [-8, 8] in steps of 0.125. Node i is exactly i / 8 - 8 in float16, bfloat16 and float32 alike.
_NUM_NODES, _STEP = 129, 0.125
_NODE_WEIGHT_SUM = sum(math.exp(-0.5 * (i * _STEP - 8.0) ** 2) for i in range(_NUM_NODES))
_QUANTILES: Dict[int, List[float]] = {}

# A piece of a piecewise quadratic: (upper end, c0, c1, c2) for c0 + c1 x + c2 x^2 up to that end.
_Piece = Tuple[float, float, float, float]
_PIECES = {
    "relu6": ((0.0, 0.0, 0.0, 0.0), (6.0, 0.0, 1.0, 0.0), (math.inf, 6.0, 0.0, 0.0)),
    "hard_swish": ((-3.0, 0.0, 0.0, 0.0), (3.0, 0.0, 1.0 / 2.0, 1.0 / 6.0), (math.inf, 0.0, 1.0, 0.0)),
    "hard_sigmoid": ((-3.0, 0.0, 0.0, 0.0), (3.0, 1.0 / 2.0, 1.0 / 6.0, 0.0), (math.inf, 1.0, 0.0, 0.0)),
    "hard_tanh": ((-1.0, -1.0, 0.0, 0.0), (1.0, 0.0, 1.0, 0.0), (math.inf, 1.0, 0.0, 0.0)),
}
# SELU's numbers are those of Klambauer et al., 2017.
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934, 1.6732632423543772848


def proxy_statistics(
    activation: Activation,
    gamma: Tensor,
    beta: Optional[Tensor] = None,
    proxy_beta: Optional[Tensor] = None,
    proxy_gamma: Optional[Tensor] = None,
    *,
    eps: float = DEFAULT_PROXY_EPS,
    method: str = "exact",
    num_samples: Optional[int] = None,
) -> Tuple[Tensor, Tensor]:
    """Return mean and inverse standard deviation of an activation's output under the proxy distribution.

    Formula: m_c = E[phi(X_c)], r_c = 1 / sqrt(Var[phi(X_c)] + eps), X_c ~ N(beta + gamma proxy_beta,
    (gamma (1 + proxy_gamma))^2). Differentiable in all four inputs.

    "exact" uses closed forms for identity, ReLU, leaky ReLU, PReLU, ReLU6, hard-swish, hard-sigmoid, hard-tanh, ELU,
    CELU and SELU, and a 129-node trapezoid for everything else. The trapezoid is exact to rounding where phi is
    smooth. It is not where phi has a kink (up to 10 % on a gradient): a layer refuses such a callable when it is made,
    this function does not look.
    "sampled" takes the mean and the population variance over `num_samples` mid-quantile nodes
    sqrt(2) erfinv(2 (i + 0.5) / n - 1), as the paper's authors do; it underestimates the variance.

    Args:
        activation: a name known to `activation_function`, nn.PReLU (differentiable in its slope too), or a function of
            one tensor.
        gamma: scale after the norm.
        beta: shift after the norm; None is zero.
        proxy_beta: mean of the proxy variable; None is zero.
        proxy_gamma: its standard deviation minus one; None is zero.
        eps: added to the variance.
        method: "exact" or "sampled".
        num_samples: nodes of "sampled", 200 where not given; refused with "exact".

    Shape:
        (C,) each -> (C,), (C,).

    Dtype: float64 if an input is float64, else float32, whatever the inputs' or autocast's type.

    Raises:
        ValueError: unknown activation or method, num_samples with "exact" or below 1.

    Source: Labatie et al. 2021, Eq. 7.
    """
    check_proxy_method(method, num_samples)
    given = [t for t in (gamma, beta, proxy_beta, proxy_gamma) if t is not None]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in given) else torch.float32
    m, s = _proxy_moments(dtype, gamma, beta, proxy_beta, proxy_gamma)
    if method == "sampled":
        mean, variance = _sampled(activation_function(activation), m, s, num_samples or DEFAULT_NUM_SAMPLES)
    else:
        mean, variance = exact_moments(activation, m, s)
    # Rounding can leave a dead channel's variance at -1e-9.
    return mean, torch.rsqrt(variance.clamp(min=0.0) + eps)


def check_proxy_method(method: str, num_samples: Optional[int]) -> None:
    """Refuse an unknown method, and a number of samples that the method does not use.

    Raises:
        ValueError: as said.
    """
    if method not in PROXY_METHODS:
        raise ValueError(f"proxy method {method!r} is unknown; use one of {', '.join(PROXY_METHODS)}")
    if num_samples is None:
        return
    if method != "sampled":
        raise ValueError(
            f'num_samples={num_samples} has no effect with method "{method}"; leave it out or use "sampled"'
        )
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples} must be at least 1")


def _proxy_moments(
    dtype: torch.dtype,
    gamma: Tensor,
    beta: Optional[Tensor],
    proxy_beta: Optional[Tensor],
    proxy_gamma: Optional[Tensor],
) -> Tuple[Tensor, Tensor]:
    """m and s of X_c ~ N(m, s^2)."""
    gamma = gamma.to(dtype)
    m = torch.zeros_like(gamma) if beta is None else beta.to(dtype)
    s = gamma
    if proxy_beta is not None:
        m = m + gamma * proxy_beta.to(dtype)
    if proxy_gamma is not None:
        s = gamma * (1.0 + proxy_gamma.to(dtype))
    return m, s.abs().clamp(min=MIN_PROXY_STD)


def exact_moments(activation: Activation, m: Tensor, s: Tensor) -> Tuple[Tensor, Tensor]:
    """Return mean and variance of activation(N(m, s^2)), in closed form or by quadrature."""
    if isinstance(activation, nn.PReLU):
        return _leaky_relu(activation.weight.to(m.dtype), m, s)
    name, number = parse_activation(activation)
    if name == "identity":
        return m, s * s
    if name == "relu":
        return _leaky_relu(0.0, m, s)
    if name == "leaky_relu" and number is not None:
        return _leaky_relu(number, m, s)
    if name == "elu" and number is not None:
        return _exponential_below_zero(number, m, s)
    if name == "celu" and number is not None:  # alpha ELU(x / alpha)
        mean, variance = _exponential_below_zero(1.0, m / number, s / number)
        return number * mean, number * number * variance
    if name == "selu":
        mean, variance = _exponential_below_zero(_SELU_ALPHA, m, s)
        return _SELU_SCALE * mean, _SELU_SCALE * _SELU_SCALE * variance
    if name in _PIECES:
        return _piecewise_quadratic(_PIECES[name], m, s)
    return quadrature(activation_function(activation), m, s)


def _normal_cdf(a: Tensor) -> Tensor:
    return 0.5 * (1.0 + torch.erf(a * math.sqrt(0.5)))


def _normal_pdf(a: Tensor) -> Tensor:
    return torch.exp(-0.5 * a * a) * (1.0 / math.sqrt(2.0 * math.pi))


def _leaky_relu(slope: Union[float, Tensor], m: Tensor, s: Tensor) -> Tuple[Tensor, Tensor]:
    """Return mean and variance of max(x, 0) + slope min(x, 0).

    With a = m/s, P = Phi(a), Q = Phi(-a), p = pdf(a): ReLU has mean m P + s p and variance
    s^2 [P + a^2 P Q + a p (Q - P) - p^2], in which nothing large cancels at large |a|, unlike
    E[z^2] - E[z]^2. Leaky ReLU is slope x + (1 - slope) ReLU(x), and Cov(x, ReLU(x)) = s^2 P.
    """
    a = (m / s).clamp(min=-_MAX_STANDARDIZED, max=_MAX_STANDARDIZED)
    upper, lower, density = _normal_cdf(a), _normal_cdf(-a), _normal_pdf(a)
    mean = m * upper + s * density
    variance = s * s * (upper + a * a * upper * lower + a * density * (lower - upper) - density * density)
    if not isinstance(slope, Tensor) and slope == 0.0:
        return mean, variance
    rest = 1.0 - slope
    variance = s * s * (slope * slope + 2.0 * slope * rest * upper) + rest * rest * variance
    return slope * m + rest * mean, variance


def _exponential_below_zero(alpha: float, m: Tensor, s: Tensor) -> Tuple[Tensor, Tensor]:
    """Return mean and variance of x above 0, alpha (exp(x) - 1) below.

    With a = m/s, P = Phi(a), Q = Phi(-a), p = pdf(a) and the shifted Gaussian moments
    E_k = E[exp(k x); x < 0] = exp(k m + k^2 s^2 / 2) Phi(-(a + k s)): c = E[phi + alpha] =
    (m + alpha) P + s p + alpha E_1, and the variance is taken around c on both sides of 0. E_k is at most Q; it is an
    exponential of a sum, since its factors overflow and underflow.
    """
    a = (m / s).clamp(min=-_MAX_STANDARDIZED, max=_MAX_STANDARDIZED)
    upper, lower, density = _normal_cdf(a), _normal_cdf(-a), _normal_pdf(a)
    first, second = (
        torch.exp(k * m + 0.5 * k * k * s * s + torch.special.log_ndtr((-(m / s + k * s)).clamp(min=_MIN_LOG_NDTR)))
        for k in (1.0, 2.0)
    )
    raised = (m + alpha) * upper + s * density + alpha * first
    above = m + alpha - raised
    variance = above * above * upper + 2.0 * above * s * density + s * s * (upper - a * density)
    variance = variance + alpha * (alpha * second - 2.0 * raised * first) + raised * raised * lower
    return raised - alpha, variance


def _piecewise_quadratic(pieces: Sequence[_Piece], m: Tensor, s: Tensor) -> Tuple[Tensor, Tensor]:
    """Return mean and variance of a piecewise quadratic, from truncated Gaussian moments.

    On each piece phi(m + s z) = q0 + q1 z + q2 z^2, and M_k is the integral of z^k pdf(z) over the piece.
    The variance is taken around the mean (q0 - mean), piece by piece, so nothing large cancels.
    """
    moments = _truncated_moments([piece[0] for piece in pieces], m, s)
    quadratics = []
    mean = torch.zeros_like(m)
    for (_, c0, c1, c2), (m0, m1, m2, _, _) in zip(pieces, moments):
        q0, q1, q2 = c0 + m * (c1 + m * c2), s * (c1 + 2.0 * c2 * m), s * s * c2
        quadratics.append((q0, q1, q2))
        mean = mean + q0 * m0 + q1 * m1 + q2 * m2
    variance = torch.zeros_like(m)
    for (q0, q1, q2), (m0, m1, m2, m3, m4) in zip(quadratics, moments):
        d = q0 - mean
        variance = variance + d * d * m0 + 2.0 * d * q1 * m1 + (q1 * q1 + 2.0 * d * q2) * m2
        variance = variance + 2.0 * q1 * q2 * m3 + q2 * q2 * m4
    return mean, variance


def _truncated_moments(upper_ends: Sequence[float], m: Tensor, s: Tensor) -> List[Tuple[Tensor, ...]]:
    """M_0 ... M_4 of the standard normal z on each interval between the ends of x = m + s z.

    Integration by parts: M_k = (k - 1) M_(k-2) + [-z^(k-1) pdf(z)] between the interval's two ends.
    """
    zero = torch.zeros_like(m)
    below = [zero] * 5  # cdf(z), and z^(k-1) pdf(z) for k = 1..4, at the piece's lower end: minus infinity
    moments: List[Tuple[Tensor, ...]] = []
    for end in upper_ends:
        if end == math.inf:
            above = [torch.ones_like(m)] + [zero] * 4
        else:
            z = ((end - m) / s).clamp(min=-_MAX_STANDARDIZED, max=_MAX_STANDARDIZED)
            density = _normal_pdf(z)
            above = [_normal_cdf(z), density, z * density, z * z * density, z * z * z * density]
        m0, m1 = above[0] - below[0], below[1] - above[1]
        m2 = m0 + below[2] - above[2]
        m3 = 2.0 * m1 + below[3] - above[3]
        m4 = 3.0 * m2 + below[4] - above[4]
        moments.append((m0, m1, m2, m3, m4))
        below = above
    return moments


def quadrature(function: Callable[[Tensor], Tensor], m: Tensor, s: Tensor, *, finer: int = 1) -> Tuple[Tensor, Tensor]:
    """Trapezoid over z in [-8, 8], weights exp(-z^2 / 2) normalized, variance in a second pass.

    Args:
        function: phi.
        m: (C,).
        s: (C,).
        finer: how many steps stand in the place of one.
    """
    num_nodes = (_NUM_NODES - 1) * finer + 1
    nodes = torch.arange(num_nodes, dtype=m.dtype, device=m.device).unsqueeze(1) * (_STEP / finer) - 8.0
    weights = torch.exp(-0.5 * nodes * nodes) * (1.0 / (_NODE_WEIGHT_SUM * finer))
    z = function(m + s * nodes)
    # A sum of products, not a matrix product: autocast would round the latter to its own type.
    mean = (weights * z).sum(dim=0)
    deviation = z - mean
    return mean, (weights * deviation * deviation).sum(dim=0)


def mid_quantiles(num_samples: int) -> List[float]:
    """Return the standard normal's quantiles at (i + 0.5) / num_samples: sqrt(2) erfinv(2 (i + 0.5) / n - 1).

    Kept by count, so that a layer that asks for them when it is made leaves a compiler a constant to find.
    """
    if num_samples not in _QUANTILES:
        normal = NormalDist()
        _QUANTILES[num_samples] = [normal.inv_cdf((i + 0.5) / num_samples) for i in range(num_samples)]
    return _QUANTILES[num_samples]


def _sampled(function: Callable[[Tensor], Tensor], m: Tensor, s: Tensor, num_samples: int) -> Tuple[Tensor, Tensor]:
    """Return mean and population variance over mid-quantile nodes of the proxy variable."""
    nodes = torch.tensor(mid_quantiles(num_samples), dtype=m.dtype, device=m.device).unsqueeze(1)
    z = function(m + s * nodes)
    mean = z.mean(dim=0)
    deviation = z - mean
    return mean, (deviation * deviation).mean(dim=0)
