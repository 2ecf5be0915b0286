"""The random nets that the paper's statements are about, measured or read from where they were measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable, Dict

import numpy as np

from analysis.images import one_over_f_images
from analysis.random_net_runs import MEASURES, run_random_nets
from models.random_net import RandomNetShape

NORMS = ("batch", "instance", "layer", "group8", "group32", "layer+pn", "layer+ws")
IDENTITY_WIDTH, IDENTITY_SEEDS = 512, 12  # at layer 20 a net is off by about 10 %, so the mean of 12 by 3 %
NARROWER = (16, 4)  # the identity's width divided by these: what "large enough" does


@dataclass(frozen=True)
class Nets:
    """Measured random nets: of each `layers` (seeds, L, 4), `effective_channels` and `residual_variance` (seeds, L).

    Args:
        shape: of the nets of `results`.
        results: by the norm's short name, all of NORMS.
        plain_ws: LN+WS with gamma = 1 and beta = 0.
        identity: LN with the identity for an activation, by width, the widest last.
    """

    shape: RandomNetShape
    results: Dict[str, Dict[str, np.ndarray]]
    plain_ws: Dict[str, np.ndarray]
    identity: Dict[int, Dict[str, np.ndarray]]

    def p1(self, norm: str) -> np.ndarray:
        """(L,), mean over seeds."""
        return self.results[norm]["layers"][:, :, 0].mean(axis=0)

    def kept(self, norm: str) -> np.ndarray:
        """(seeds, L), (P - P1) of each net, where P is 1."""
        return 1 - self.results[norm]["layers"][:, :, 0]

    def kept_by_identity(self, width: int) -> np.ndarray:
        """(seeds, L), (P - P1) of the nets with the identity."""
        return 1 - self.identity[width]["layers"][:, :, 0]

    def mean(self, norm: str, measure: str) -> np.ndarray:
        """(L,), mean over seeds."""
        return self.results[norm][measure].mean(axis=0)


def measure_nets(
    folder: Path,
    shape: RandomNetShape,
    seeds: int,
    *,
    identity_width: int = IDENTITY_WIDTH,
    identity_seeds: int = IDENTITY_SEEDS,
    advance: Callable[[], object] = lambda: None,
) -> Nets:
    """Return all random nets that the statements need; what `folder` holds of them is not measured again.

    Args:
        folder: of the results files.
        shape: of the nets.
        seeds: of each norm.
        identity_width: of the nets with the identity for an activation, where the theorem has an equality; nets a
            fourth and a sixteenth as wide are measured too.
        identity_seeds: of these nets, of each width.
        advance: called once for each of `layers_to_measure`.

    Raises:
        ValueError: fewer than 2 `identity_seeds`, or a width below 16.
    """
    if identity_seeds < 2 or identity_width < max(NARROWER):
        raise ValueError(
            f"{identity_seeds} nets of width {identity_width} with the identity: use 2 or more, whose spread is the "
            f"measurement's uncertainty, and a width of {max(NARROWER)} or more"
        )

    def run(name: str, norm: str, shape: RandomNetShape, seeds: int, count: int, size: int) -> Dict[str, np.ndarray]:
        results = run_random_nets(
            folder / name / "power.json",
            norm,
            shape,
            seeds=seeds,
            images_of_seed=lambda seed: one_over_f_images(count, size, seed),
            images_described=f"{count} of 1/f, {size} pixels",
            advance=advance,
        )
        return {key: np.array(results[key]) for key in MEASURES}

    plain = replace(shape, gamma_std=0.0, beta_std=0.0)
    widths = [*(identity_width // factor for factor in NARROWER), identity_width]
    return Nets(
        shape,
        {norm: run(norm, norm, shape, seeds, 64, 16) for norm in NORMS},
        run("layer+ws-plain", "layer+ws", plain, seeds, 64, 16),
        {
            width: run(
                f"layer-identity-{width}",
                "layer",
                replace(shape, width=width, activation="identity"),
                identity_seeds,
                32,
                8,
            )
            for width in widths
        },
    )


def layers_to_measure(shape: RandomNetShape, seeds: int, identity_seeds: int) -> int:
    """Return how often `measure_nets` calls `advance`."""
    return shape.depth * (seeds * (len(NORMS) + 1) + identity_seeds * (len(NARROWER) + 1))
