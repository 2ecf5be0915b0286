"""Each statement of the paper's sections 2 to 5 that can be measured: claimed, measured, bound, verdict.

Source: Labatie et al. 2021; the paragraph or theorem is named in each statement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, List, Sequence

import numpy as np
import torch
from torch import Tensor

from analysis.images import one_over_f_images
from analysis.norm_name import exact_factory, norm_label
from analysis.power import PowerStatistics
from analysis.properties import CLAIMED, PROPERTIES, measure_properties
from analysis.random_power import propagate
from analysis.theory_nets import Nets
from models.random_net import RandomNetShape
from proxynorm.proxy import mid_quantiles

_QUANTILES = 2**13


@dataclass(frozen=True)
class Statement:
    """One row of the verdict page.

    Args:
        name: where the paper says it.
        claimed: what it says.
        measured: what was measured, with the number.
        bound: what the number was held against.
        holds: the verdict.
    """

    name: str
    claimed: str
    measured: str
    bound: str
    holds: bool


def judge(nets: Nets) -> List[Statement]:
    """All statements: those that random nets decide, of single layers, and Table 1."""
    from_nets, about_layers = judge_nets(nets), [_theorem_2(nets.shape), _theorem_3_step(nets.shape)]
    return [*from_nets, *about_layers, *_table_1(nets.shape)]


def judge_nets(nets: Nets) -> List[Statement]:
    """The statements that the numbers of random nets decide."""
    return [
        _power_sums_to_one(nets),
        *_theorem_1(nets),
        _theorem_3_net(nets),
        _channel_imbalance(nets),
        _channel_wise_linearity(nets),
        _group_norm_is_between(nets),
        _weight_standardization(nets),
    ]


def _power_sums_to_one(nets: Nets) -> Statement:
    off = max(float(np.abs(result["layers"].sum(axis=2) - 1).max()) for result in nets.results.values())
    return Statement(
        "Section 3, C.1",
        "P1 + P2 + P3 + P4 = 1 for BN, LN, IN, GN",
        f"largest deviation over {len(nets.results)} norms and all layers: {off:.1e}",
        "1e-6 (float32 activations)",
        off < 1e-6,
    )


def _theorem_1(nets: Nets) -> List[Statement]:
    def ratios(layers: np.ndarray, shape: RandomNetShape) -> np.ndarray:
        bound = np.array([shape.bound(layer) for layer in range(1, shape.depth + 1)])
        return (1 - layers[:, :, 0].mean(axis=0)) / bound

    relu, identity = (
        ratios(nets.results["layer"]["layers"], nets.shape),
        ratios(nets.identity["layers"], nets.identity_shape),
    )
    left, rho = 1 - nets.p1("layer")[-1], nets.shape.rho
    off = float(np.abs(identity - 1).max())
    return [
        Statement(
            "Theorem 1",
            "LN, ReLU: P - P1 is at most about rho^(l-1) at every layer",
            f"largest (P - P1) / rho^(l-1) over layers: {relu.max():.4f}; at layer {nets.shape.depth}: {left:.3f} of "
            f"{nets.shape.bound(nets.shape.depth):.3f}",
            f"1.001, with rho = {rho:.4f}",
            bool(relu.max() <= 1.001),
        ),
        Statement(
            "Theorem 1, identity [D.4]",
            "LN, identity: the bound is an equality for large widths",
            f"width {nets.identity_shape.width}, mean of {len(nets.identity['layers'])} seeds: largest deviation "
            f"{100 * off:.1f} %",
            "10 %",
            off <= 0.1,
        ),
    ]


def _channel_imbalance(nets: Nets) -> Statement:
    layer, batch = (nets.mean(norm, "effective_channels")[-1] for norm in ("layer", "batch"))
    return Statement(
        "Section 4, footnote 3",
        "LN's channels become imbalanced; BN's have equal power",
        f"effective channels at layer {nets.shape.depth}, as a fraction: LN {layer:.3f}, BN {batch:.4f}",
        "LN < 0.6; BN > 0.999",
        bool(layer < 0.6 and batch > 0.999),
    )


def _theorem_2(shape: RandomNetShape) -> Statement:
    images = one_over_f_images(64, 16, 0)
    others, p3 = 0.0, 1.0
    for values in propagate(shape, exact_factory("instance"), images, 0):
        power = _channel_power(values.normalized)
        others = max(others, float(power[[0, 1, 3]].max()))
        p3 = min(p3, float(power[2].min()))
    return Statement(
        "Theorem 2",
        "IN: P1 = P2 = P4 = 0 and P3 = 1 in every channel",
        f"over all channels and layers: largest P1, P2, P4 {others:.1e}; smallest P3 {p3:.7f}",
        "1e-6; 1 - 1e-5",
        others < 1e-6 and p3 > 1 - 1e-5,
    )


def _group_norm_is_between(nets: Nets) -> Statement:
    chain = ("layer", "group8", "group32", "instance")
    collapse = [nets.p1(norm)[-1] for norm in chain]
    variability = [nets.results[norm]["layers"][:, 0, [1, 3]].sum(axis=1).mean() for norm in chain]
    return Statement(
        "Section 4, failure modes with GN",
        "GN has both failure modes, less than LN and IN: with more groups less collapse and less instance variability",
        f"{', '.join(norm_label(norm) for norm in chain)}: P1 at layer {nets.shape.depth} "
        f"{_listed(collapse)}; P2 + P4 at layer 1 {_listed(variability)}",
        "both fall along the list",
        all(a > b for values in (collapse, variability) for a, b in zip(values, values[1:])),
    )


def _theorem_3_step(shape: RandomNetShape) -> Statement:
    """Conditions (i) to (iii) hold by construction: y is Gaussian in each channel, proxy parameters are 0, eps = 0."""
    y = torch.tensor(mid_quantiles(_QUANTILES), dtype=torch.float64)
    worst = 0.0
    for activation in ("relu", "silu", "gelu", "leaky_relu"):
        layer = exact_factory("layer+pn")(64, activation).double()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            layer.weight.normal_(shape.gamma_mean, shape.gamma_std, generator=generator)
            assert layer.bias is not None
            layer.bias.normal_(0.0, shape.beta_std, generator=generator)
            # Norm is left out: the step after it is given y itself.
            layer.norm = _Given()
            z = layer(y.view(1, 1, -1).expand(1, 64, -1))[0]
        worst = max(worst, float(z.mean(dim=1).abs().max()), float(((z**2).mean(dim=1) - 1).abs().max()))
    return Statement(
        "Theorem 3, the step",
        "with y Gaussian in a channel and proxy parameters zero, PN gives mean 0 and power 1, for any activation",
        f"{_QUANTILES} Gaussian quantiles, 64 channels, ReLU, SiLU, GELU, leaky ReLU: largest deviation {worst:.1e}",
        "1e-3 (the quantiles' own variance is short of 1 by a few 1e-4)",
        worst < 1e-3,
    )


class _Given(torch.nn.Module):
    """In the place of a norm: what enters is normalized already."""

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return x * weight.view(1, -1, 1) + bias.view(1, -1, 1)


def _theorem_3_net(nets: Nets) -> Statement:
    p1, effective = nets.p1("layer+pn"), nets.mean("layer+pn", "effective_channels")
    return Statement(
        "Theorem 3, whole nets",
        "LN+PN keeps y channel-wise normalized at every depth, though the conditions hold only approximately",
        f"largest P1 {p1.max():.3f} (layer {int(p1.argmax()) + 1}), at layer {nets.shape.depth} {p1[-1]:.4f}; "
        f"effective channels there {effective[-1]:.3f}",
        "P1 <= 0.1 everywhere; effective channels > 0.95",
        bool(p1.max() <= 0.1 and effective[-1] > 0.95),
    )


def _channel_wise_linearity(nets: Nets) -> Statement:
    residual = {norm: nets.mean(norm, "residual_variance") for norm in ("batch", "layer", "layer+pn")}
    last = {norm: values[-1] for norm, values in residual.items()}
    return Statement(
        "Section 3, C.2; Figure 1",
        "channel-wise collapse makes the activation channel-wise linear; BN and LN+PN stay nonlinear",
        f"variance of ReLU that no line explains, over that of its input, layer 1 and {nets.shape.depth}: "
        + ", ".join(f"{norm_label(norm)} {values[0]:.3f} and {values[-1]:.3f}" for norm, values in residual.items())
        + " (a centred Gaussian has 0.091)",
        "LN's last below 1/3 of its first; the others' above 0.8 of theirs",
        bool(
            last["layer"] < residual["layer"][0] / 3
            and all(last[norm] > 0.8 * residual[norm][0] for norm in ("batch", "layer+pn"))
        ),
    )


def _weight_standardization(nets: Nets) -> Statement:
    random, plain = nets.p1("layer+ws")[-1], nets.plain_ws["layers"][:, :, 0].mean(axis=0).max()
    return Statement(
        "Section 5, strength 1",
        "LN+WS normalizes channels while gamma = 1 and beta = 0, and less well once they differ",
        f"largest P1 with gamma = 1, beta = 0: {plain:.4f}; with random gamma, beta P1 at layer {nets.shape.depth} "
        f"{random:.3f} (LN+PN {nets.p1('layer+pn')[-1]:.4f})",
        "at most 0.05; between 0.05 and 0.35",
        bool(plain <= 0.05 <= random <= 0.35),
    )


def _table_1(shape: RandomNetShape) -> List[Statement]:
    statements = []
    for norm, claims in CLAIMED.items():
        measured = measure_properties(norm, shape, 0)
        for name, claim in zip(PROPERTIES, claims):
            cell = measured[name]
            statements.append(
                Statement(
                    f"Table 1, {norm_label(norm)}",
                    f"{name}: {'present' if claim else 'absent'}",
                    f"{cell.meaning}: {cell.measured:.2g}",
                    f"{cell.limit} is present",
                    cell.is_present == claim,
                )
            )
    return statements


def _channel_power(y: Tensor) -> Tensor:
    statistics = PowerStatistics(y.shape[1])
    statistics.add(y)
    return statistics.channel_power()


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)
