"""Theorem 1 against random nets: the bound on P - P1 with ReLU, and the equality with the identity.

With LN and the identity, a layer leaves rho = gamma^2 / (gamma^2 + beta^2) of P - P1, up to a deviation that depends on
the draw of its weights. To first order, for a relative error e of size s / sqrt(width) in the power that is drawn,

    f^(l+1) / f^l = rho (1 + (1 - rho^l) e),    f^l = P(y^l) - P1(y^l),    P(y^l) = 1

since an error changes the share f only as far as there is another share. Errors of layers add up in f: ln f^l is off by
s / sqrt(width) times the root of the sum of (1 - rho^k)^2 over k < l, which is 10 % for a net of width 512 at layer 20,
and no three nets decide an equality there. The factors of single layers do: their mean, weighted by
1 / (1 - rho^l)^2, is known to 0.13 % from three nets.

Source: Labatie et al. 2021, section 4, Theorem 1, Eq. 6; the equality: appendix D.4.
"""

from __future__ import annotations

from typing import List, NamedTuple

import numpy as np

from analysis.statement import Statement, spread
from analysis.theory_nets import Nets
from models.random_net import RandomNetShape

_TOLERANCE = 0.1  # of P - P1 over all layers


class LayerFactor(NamedTuple):
    """The factor by which a layer of an identity net multiplies P - P1.

    Args:
        mean: over layers and nets, weighted.
        standard_error: of `mean`.
        spread: s / sqrt(width), the standard deviation of e.
    """

    mean: float
    standard_error: float
    spread: float


def layer_factor(kept: np.ndarray, shape: RandomNetShape) -> LayerFactor:
    """Return the factor of a layer.

    Args:
        kept: (nets, L), P - P1.
        shape: of the nets.
    """
    steps = np.diff(np.log(kept), axis=1)
    scale = np.broadcast_to(1 - shape.rho ** np.arange(1, kept.shape[1]), steps.shape)
    weights = 1 / scale**2
    mean = np.average(steps, weights=weights)
    errors = (steps - mean) / scale
    deviation = np.sqrt((errors**2).sum() / (errors.size - 1))
    factor = float(np.exp(mean))
    return LayerFactor(factor, float(factor * deviation / np.sqrt(weights.sum())), float(deviation))


def theorem_1(nets: Nets) -> List[Statement]:
    """Return the rows of the verdict page."""
    return [_bound(nets), _each_layer(nets), _all_layers(nets), _large_widths(nets)]


def _bound_of(shape: RandomNetShape) -> np.ndarray:
    return np.array([shape.bound(layer) for layer in range(1, shape.depth + 1)])


def _bound(nets: Nets) -> Statement:
    kept, bound = nets.kept("layer"), _bound_of(nets.shape)
    largest, later = (kept / bound).max(), (kept / bound)[:, 1:].max()
    return Statement(
        "Theorem 1",
        "LN, ReLU: P - P1 is at most about rho^(l-1) at every layer",
        f"largest (P - P1) / rho^(l-1) in any net and layer {largest:.4f}, from layer 2 on {later:.3f}; at layer "
        f"{nets.shape.depth} P - P1 is {spread(kept[:, -1])} of {bound[-1]:.3f}",
        f"1.001, with rho = {nets.shape.rho:.4f}",
        bool(largest <= 1.001),
    )


def _each_layer(nets: Nets) -> Statement:
    width = max(nets.identity)
    kept, rho = nets.kept_by_identity(width), nets.shape.rho
    found = layer_factor(kept, nets.shape)
    off, error = abs(found.mean - rho), found.standard_error
    return Statement(
        "Theorem 1, identity, each layer [D.4]",
        "LN, identity: the bound is an equality for large widths, so a layer multiplies P - P1 by rho",
        f"width {width}, {len(kept)} nets of {kept.shape[1]} layers: mean factor {found.mean:.4f} +- {error:.4f} "
        "(standard error)",
        f"rho = {rho:.4f} within 3 standard errors, and these below 0.5 %",
        None if error > 0.005 * rho else bool(off <= 3 * error),
    )


def _all_layers(nets: Nets) -> Statement:
    """Decided only as far as the nets differ little enough.

    How much they differ follows from the spread of single layers: that of three nets at one layer would itself be known
    to a half only.
    """
    width = max(nets.identity)
    kept = nets.kept_by_identity(width)
    deviations = np.abs((kept / _bound_of(nets.shape)).mean(axis=0) - 1)
    layer = int(deviations.argmax())
    scale = 1 - nets.shape.rho ** np.arange(nets.shape.depth)
    of_one_net = layer_factor(kept, nets.shape).spread * np.sqrt((scale**2).cumsum())
    largest, error = float(deviations[layer]), float(of_one_net[layer] / np.sqrt(len(kept)))
    return Statement(
        "Theorem 1, identity, all layers [D.4]",
        "LN, identity: P - P1 = rho^(l-1) at every layer for large widths",
        f"width {width}, mean of {len(kept)} nets: largest deviation {100 * largest:.1f} % +- {100 * error:.1f} % "
        f"(layer {layer + 1}); a single net is off by {100 * of_one_net[-1]:.0f} % at layer {nets.shape.depth}",
        "10 %; not decided where the standard error is above 5 %",
        None if error > _TOLERANCE / 2 else bool(largest <= _TOLERANCE),
    )


def _large_widths(nets: Nets) -> Statement:
    spreads = [layer_factor(nets.kept_by_identity(width), nets.shape).spread for width in sorted(nets.identity)]
    return Statement(
        "Theorem 1, large widths",
        "the equality holds with probability close to 1 when widths are large: nets differ by 1 / sqrt(width)",
        f"spread of a layer's factor over nets, widths {', '.join(map(str, sorted(nets.identity)))}: "
        + ", ".join(f"{100 * each:.1f} %" for each in spreads)
        + ", a fraction of 1 - rho^l",
        "each width, 4 times the one before, has 1.4 to 2.8 times less",
        all(1.4 <= narrow / wide <= 2.8 for narrow, wide in zip(spreads, spreads[1:])),
    )
