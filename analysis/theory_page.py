"""The verdict page and its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import List, Sequence, Tuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from analysis.images import one_over_f_images
from analysis.norm_name import exact_factory, norm_label
from analysis.random_power import propagate
from analysis.statement import Statement
from analysis.theory_nets import NORMS, Nets
from configs.atomic_file import replace_text
from configs.picture_file import save_picture
from models.random_net import RandomNetShape

# Okabe-Ito colours and dashes, so that lines are told apart in grey too.
_STYLES = {
    "batch": ("black", "-"),
    "instance": ("#999999", ":"),
    "layer": ("#D55E00", "-"),
    "group8": ("#E69F00", "--"),
    "group32": ("#56B4E9", "-."),
    "layer+pn": ("#0072B2", "-"),
    "layer+ws": ("#009E73", "--"),
}


def write_page(statements: Sequence[Statement], nets: Nets, path: Path) -> None:
    """theory.md: one row for each statement."""
    shape = nets.shape
    held, undecided = (sum(statement.holds is verdict for statement in statements) for verdict in (True, None))
    seeds, identity_seeds = len(nets.results["layer"]["layers"]), len(nets.identity[max(nets.identity)]["layers"])
    lines = [
        "# The paper's statements, measured",
        "",
        f"{held} of {len(statements)} hold{f', {undecided} are not decided' if undecided else ''}. Random nets of "
        f"Definition 1: width {shape.width}, depth {shape.depth}, {shape.kernel_size}x{shape.kernel_size} periodic "
        f"convolutions, gamma ~ N({shape.gamma_mean:g}, {shape.gamma_std:g}^2), beta ~ N(0, {shape.beta_std:g}^2); "
        f"{seeds} nets of each norm, on 64 centred 1/f images of 16x16 each; {identity_seeds} with the identity, on 32 "
        "of 8x8.",
        "A number is the mean over nets, with the lowest and the highest in brackets.",
        "",
        "| statement | claimed | measured | bound | verdict |",
        "|---|---|---|---|---|",
    ]
    for each in statements:
        verdict = each.verdict if each.holds else f"**{each.verdict}**"
        assert "|" not in each.claimed + each.measured + each.bound, "a bar would end the cell"
        lines.append(f"| {each.name} | {each.claimed} | {each.measured} | {each.bound} | {verdict} |")
    lines += ["", "![measured over depth](theory.png)", "", "![distributions in channels](figure1.png)"]
    replace_text(path, "\n".join(lines) + "\n")


def plot_theory(nets: Nets, path: Path) -> None:
    """Plot P - P1 against Theorem 1, effective channels, and channel-wise nonlinearity, over depth."""
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    power_axes, effective_axes, residual_axes = figure.subplots(1, 3)
    depth = np.arange(1, nets.shape.depth + 1)
    for norm in NORMS:
        color, dashes = _STYLES[norm]
        style = {"color": color, "linestyle": dashes, "linewidth": 1.6}
        power_axes.semilogy(depth, 1 - nets.p1(norm), **style)
        effective_axes.plot(depth, nets.mean(norm, "effective_channels"), **style)
        residual_axes.plot(depth, nets.mean(norm, "residual_variance"), label=norm_label(norm), **style)
    identity = nets.kept_by_identity(max(nets.identity))
    power_axes.errorbar(
        depth,
        identity.mean(axis=0),
        yerr=identity.std(axis=0, ddof=1) / len(identity) ** 0.5,
        fmt="o",
        color="#CC79A7",
        markersize=3.5,
        elinewidth=1,
        label="LN, identity (bars: standard error)",
    )
    bound = [nets.shape.bound(layer) for layer in range(1, nets.shape.depth + 1)]
    power_axes.semilogy(depth, bound, color="#CC79A7", label=r"Theorem 1: $\rho^{\,l-1}$")
    power_axes.yaxis.set_major_formatter(ScalarFormatter())
    power_axes.legend(frameon=False, fontsize=8, loc="lower left")
    residual_axes.axhline(0.25 - 0.5 / np.pi, color="0.6", linewidth=0.8)
    residual_axes.text(depth[-1], 0.094, "grey line: centred Gaussian", fontsize=7.5, color="0.4", ha="right")
    _finish(power_axes, "a  not collapsed: 1 - P1 (Theorems 1 to 3)")
    _finish(effective_axes, "b  effective channels, as a fraction of the width")
    _finish(residual_axes, "c  variance of ReLU no line explains / input's (C.2)")
    effective_axes.set_ylim(0, 1.05)
    residual_axes.set_ylim(bottom=0)
    figure.legend(
        loc="outside lower center",
        ncols=len(NORMS),
        frameon=False,
        fontsize=9,
        handles=residual_axes.get_lines()[: len(NORMS)],
    )
    save_picture(figure, path, dpi=110)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("layer", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.grid(True, color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def plot_channel_distributions(shape: RandomNetShape, path: Path) -> None:
    """Figure 1 from real activations: y~ in two channels of a random net, at four depths, with LN and with LN+PN.

    The channels are those of median collapse (P_c - P1_c) / P_c among those of positive and of negative mean. Both are
    divided by the root of their power, so that the shapes can be compared.
    """
    depths = sorted({1, max(1, shape.depth // 4), max(1, shape.depth // 2), shape.depth})
    figure = Figure(figsize=(2.7 * len(depths), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, len(depths), sharex=True, squeeze=False)
    for row, norm in zip(grid, ("layer", "layer+pn")):
        columns = iter(row)
        for number, values in enumerate(
            propagate(shape, exact_factory(norm), one_over_f_images(64, 16, 0), 0), start=1
        ):
            if number in depths:
                _draw_channels(next(columns), values.affine, f"{norm_label(norm)}, layer {number}")
    for axes in grid[-1]:
        axes.set_xlabel("input of ReLU / root of its power", fontsize=8)
    figure.supxlabel(
        "black: ReLU; blue and orange: the channels of median collapse among those of positive and of negative mean, "
        "over 64 images",
        fontsize=8.5,
    )
    save_picture(figure, path, dpi=100)


def _draw_channels(axes: Axes, affine: torch.Tensor, title: str) -> None:
    shares: List[Tuple[float, int, bool]] = []
    channels = affine.transpose(0, 1).flatten(1).double()
    mean, power = channels.mean(dim=1), (channels**2).mean(dim=1)
    share = 1 - mean**2 / power
    for index in range(len(channels)):
        shares.append((float(share[index]), index, bool(mean[index] > 0)))
    chosen = []
    for is_positive, colour in ((True, "#0072B2"), (False, "#D55E00")):
        found = sorted(entry for entry in shares if entry[2] == is_positive)
        if not found:
            continue
        kept, index, _ = found[len(found) // 2]
        x = (channels[index] / power[index].sqrt()).numpy()
        chosen.append(f"{kept:.2f}")
        axes.hist(x, bins=60, range=(-3, 3), density=True, color=colour, alpha=0.55)
    line = np.linspace(-3, 3, 61)
    axes.plot(line, np.maximum(line, 0) / 3 * axes.get_ylim()[1], color="black", linewidth=1.2)
    axes.set_title(f"{title}\n(P - P1) / P = {' and '.join(chosen)}", fontsize=8.5)
    axes.set_yticks([])
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right", "left"]].set_visible(False)
