"""Each statement of the paper's sections 2 to 5 that can be measured: claimed, measured, bound, verdict.

Source: Labatie et al. 2021; the paragraph or theorem is named in each statement.
"""

from __future__ import annotations

from typing import Dict, List

import numpy as np
import torch
from torch import Tensor

from analysis.images import one_over_f_images
from analysis.norm_name import exact_factory, norm_label
from analysis.power import PowerStatistics
from analysis.properties import CLAIMED, PROPERTIES, measure_properties
from analysis.random_power import propagate
from analysis.statement import Statement, spread
from analysis.theorem_1 import theorem_1
from analysis.theory_nets import Nets
from models.random_net import RandomNetShape
from normact.norms import IdentityNorm
from normact.proxy import mid_quantiles, proxy_statistics

_QUANTILES = 2**13


def judge(nets: Nets) -> List[Statement]:
    """Return all statements: those that random nets decide, of single layers, and Table 1."""
    from_nets = judge_nets(nets)
    about_layers = [_theorem_2(nets.shape), _theorem_3_step(nets.shape), _proxy_folds(nets.shape)]
    return [*from_nets, *about_layers, *_table_1(nets)]


def judge_nets(nets: Nets) -> List[Statement]:
    """Return the statements that the numbers of random nets decide."""
    return [
        _power_sums_to_one(nets),
        *theorem_1(nets),
        _theorem_3_net(nets),
        _channel_imbalance(nets),
        _channel_wise_linearity(nets),
        _group_norm_is_between(nets),
        _instance_variability(nets),
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


def _channel_imbalance(nets: Nets) -> Statement:
    layer, batch = (nets.results[norm]["effective_channels"][:, -1] for norm in ("layer", "batch"))
    return Statement(
        "Section 4, footnote 3",
        "LN's channels become imbalanced; BN's have equal power",
        f"effective channels at layer {nets.shape.depth}, as a fraction: LN {spread(layer)}, BN {spread(batch, 4)}",
        "LN < 0.6; BN > 0.999 in every net",
        bool(layer.max() < 0.6 and batch.min() > 0.999),
    )


def _theorem_2(shape: RandomNetShape) -> Statement:
    images = one_over_f_images(64, 16, 0)
    others, p3 = 0.0, 1.0
    for values in propagate(shape, exact_factory("instance"), images, 0):
        power = channel_power(values.normalized)
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
    collapse = [nets.results[norm]["layers"][:, -1, 0] for norm in chain]
    variability = [nets.results[norm]["layers"][:, 0, [1, 3]].sum(axis=1) for norm in chain]
    return Statement(
        "Section 4, failure modes with GN",
        "GN has both failure modes, less than LN and IN: with more groups less collapse and less instance variability",
        f"{', '.join(norm_label(norm) for norm in chain)}: P1 at layer {nets.shape.depth} "
        f"{', '.join(map(spread, collapse))}; P2 + P4 at layer 1 {', '.join(map(spread, variability))}",
        "the means of both fall along the list",
        all(a.mean() > b.mean() for values in (collapse, variability) for a, b in zip(values, values[1:])),
    )


def _instance_variability(nets: Nets) -> Statement:
    variability = {norm: result["layers"][:, :, [1, 3]].sum(axis=2) for norm, result in nets.results.items()}
    shown = sorted({0, nets.shape.depth // 4, nets.shape.depth // 2, nets.shape.depth - 1})
    rows = [
        f"{norm_label(norm)} " + ", ".join(f"{variability[norm][:, layer].mean():.2g}" for layer in shown)
        for norm in ("instance", "batch", "layer", "layer+pn")
    ]
    return Statement(
        "Section 4, failure modes with IN",
        "IN leaves no variability of instance statistics at any depth; the other norms do not fix it",
        f"P2 + P4 at layers {', '.join(str(layer + 1) for layer in shown)}: {'; '.join(rows)}",
        "IN at most 1e-6 at every layer, the others above; in every net",
        bool(
            variability["instance"].max() <= 1e-6
            and all(variability[norm].min() > 1e-6 for norm in ("batch", "layer", "layer+pn"))
        ),
    )


def _proxy_folds(shape: RandomNetShape) -> Statement:
    """conv(PN(z)) = conv'(z) with conv's weights times r_c and its bias less the sum of them times m_c."""
    worst = 0.0
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 64, 8, 8, generator=generator, dtype=torch.float64)
    for activation in ("relu", "silu", "gelu", "leaky_relu", "elu"):
        layer, plain = (exact_factory(norm)(64, activation).double() for norm in ("layer+pn", "layer"))
        conv = torch.nn.Conv2d(64, 32, 3).double()
        with torch.no_grad():
            layer.weight.normal_(shape.gamma_mean, shape.gamma_std, generator=generator)
            assert layer.bias is not None and plain.bias is not None
            layer.bias.normal_(0.0, shape.beta_std, generator=generator)
            plain.weight.copy_(layer.weight)
            plain.bias.copy_(layer.bias)
            expected = conv(layer(x))
            mean, inverse_std = proxy_statistics(activation, layer.weight, layer.bias, eps=0.0)
            conv.weight.mul_(inverse_std.view(1, -1, 1, 1))
            assert conv.bias is not None
            conv.bias.sub_((conv.weight * mean.view(1, -1, 1, 1)).sum(dim=(1, 2, 3)))
            worst = max(worst, float((conv(plain(x)) - expected).abs().max() / expected.abs().max()))
    return Statement(
        "Section 5, preserving expressivity",
        "PN folds into the next convolution: what LN+PN expresses, LN expresses with other weights, and the reverse",
        f"64 channels, 5 activations, float64: largest relative difference {worst:.1e}",
        "1e-12",
        worst < 1e-12,
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
            layer.norm = IdentityNorm(64)
            z = layer(y.view(1, 1, -1).expand(1, 64, -1))[0]
        worst = max(worst, float(z.mean(dim=1).abs().max()), float(((z**2).mean(dim=1) - 1).abs().max()))
    return Statement(
        "Theorem 3, the step",
        "with y Gaussian in a channel and proxy parameters zero, PN gives mean 0 and power 1, for any activation",
        f"{_QUANTILES} Gaussian quantiles, 64 channels, ReLU, SiLU, GELU, leaky ReLU: largest deviation {worst:.1e}",
        "1e-3 (the quantiles' own variance is short of 1 by a few 1e-4)",
        worst < 1e-3,
    )


def _theorem_3_net(nets: Nets) -> Statement:
    p1, effective = nets.results["layer+pn"]["layers"][:, :, 0], nets.results["layer+pn"]["effective_channels"][:, -1]
    layer = int(p1.mean(axis=0).argmax())
    return Statement(
        "Theorem 3, whole nets",
        "LN+PN keeps y channel-wise normalized at every depth, though the conditions hold only approximately",
        f"P1 is largest at layer {layer + 1}: {spread(p1[:, layer])}; at layer {nets.shape.depth} "
        f"{spread(p1[:, -1], 4)}; effective channels there {spread(effective)}",
        "P1 <= 0.1 everywhere; effective channels > 0.95; in every net",
        bool(p1.max() <= 0.1 and effective.min() > 0.95),
    )


def _channel_wise_linearity(nets: Nets) -> Statement:
    residual: Dict[str, np.ndarray] = {
        norm: nets.results[norm]["residual_variance"] for norm in ("batch", "layer", "layer+pn")
    }
    change = {norm: values[:, -1] / values[:, 0] for norm, values in residual.items()}
    return Statement(
        "Section 3, C.2; Figure 1",
        "channel-wise collapse makes the activation channel-wise linear; BN and LN+PN stay nonlinear",
        f"variance of ReLU that no line explains, over that of its input, layer 1 and {nets.shape.depth}: "
        + ", ".join(
            f"{norm_label(norm)} {values[:, 0].mean():.3f} and {spread(values[:, -1])}"
            for norm, values in residual.items()
        )
        + " (a centred Gaussian has 0.091)",
        "LN's last below 1/3 of its first; the others' above 0.8 of theirs; in every net",
        bool(change["layer"].max() < 1 / 3 and min(change["batch"].min(), change["layer+pn"].min()) > 0.8),
    )


def _weight_standardization(nets: Nets) -> Statement:
    random, proxy = (nets.results[norm]["layers"][:, -1, 0] for norm in ("layer+ws", "layer+pn"))
    plain = float(nets.plain_ws["layers"][:, :, 0].max())
    return Statement(
        "Section 5, strength 1",
        "LN+WS normalizes channels while gamma = 1 and beta = 0, and less well once they differ",
        f"largest P1 with gamma = 1, beta = 0: {plain:.4f}; with random gamma, beta P1 at layer {nets.shape.depth} "
        f"{spread(random)} (LN+PN {spread(proxy, 4)})",
        "at most 0.05; between 0.05 and 0.35; in every net",
        bool(plain <= 0.05 <= random.min() and random.max() <= 0.35),
    )


def _table_1(nets: Nets) -> List[Statement]:
    statements = []
    for norm, claims in CLAIMED.items():
        measured = measure_properties(norm, nets.results[norm]["layers"])
        for name, claim in zip(PROPERTIES, claims):
            cell = measured[name]
            statements.append(
                Statement(
                    f"Table 1, {norm_label(norm)}",
                    f"{name}: {'present' if claim else 'absent'}",
                    f"{cell.meaning}: {cell.described}",
                    f"{cell.limit} is present; in every net",
                    all(found == claim for found in cell.is_present),
                )
            )
    return statements


def channel_power(y: Tensor) -> Tensor:
    """Return P1 to P4 of each channel, (4, C)."""
    statistics = PowerStatistics(y.shape[1])
    statistics.add(y)
    return statistics.channel_power()
