"""What the commands keep of a power decomposition: power.json, every channel, a picture; and panels made of them."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any, Dict, Mapping

import numpy as np

from analysis.norm_name import norm_label
from analysis.power import PowerMeter
from analysis.power_plot import PowerPanel, evenly, panel_of_layers, plot_power
from analysis.results_file import ResultsError, write_results
from configs.atomic_file import replace_file
from models.random_net import RandomNetShape


def save_power(out: Path, title: str, meters: Mapping[str, PowerMeter], settings: Mapping[str, Any]) -> None:
    """power.json, P1 to P4 of each channel in channels.npz, and power.png, in the folder `out`.

    Args:
        out: the folder.
        title: what was measured: the network, or the run.
        meters: by name: the network alone, or each checkpoint.
        settings: how it was measured; written with the numbers.
    """
    points = [
        {"name": name, "layers": meter.records(), "not_measured": meter.not_measured} for name, meter in meters.items()
    ]
    write_results(out / "power.json", {"title": title, **settings, "points": points})
    channels: Dict[str, Any] = {
        f"{name}/{path}": statistics.channel_power().numpy()
        for name, meter in meters.items()
        for path, statistics in meter.layers.items()
    }
    packed = BytesIO()
    np.savez_compressed(packed, **channels)
    replace_file(out / "channels.npz", packed.getvalue())
    panels = [panel_of_layers(name, meter.records()) for name, meter in evenly(list(meters.items()), 12)]
    note = "batch norm by the statistics of each batch" if settings["form"] == "training" else ""
    plot_power(panels, out / "power.png", columns=min(6, len(panels)), note=note)


def panel_of_results(results: Mapping[str, Any], path: Path) -> PowerPanel:
    """Return the panel of a power.json of `power` or of `random-net`; its samples are checkpoints or seeds.

    Raises:
        ResultsError: a file of another content.
    """
    try:
        if "layers" in results:
            return panel_of_random_net(
                results["norm"], np.array(results["layers"], dtype=float), RandomNetShape(**results["shape"])
            )
        powers = np.array([[layer["power"] for layer in point["layers"]] for point in results["points"]], dtype=float)
        if powers.ndim != 3 or powers.shape[2] != 4:
            raise ValueError(f"it has {len(results['points'])} points, of different or of no norms")
        return PowerPanel(str(results["title"]), powers)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ResultsError(
            f"{path} is not a power.json of `analyze.py power` or `random-net` that can be drawn: {reason}"
        ) from error


def panel_of_random_net(norm: str, powers: np.ndarray, shape: RandomNetShape) -> PowerPanel:
    """Return a norm's panel, with the theorem's bound on P1 where it applies.

    Raises:
        ValueError: powers that are not (seeds, L, 4).
    """
    if powers.ndim != 3 or powers.shape[1:] != (shape.depth, 4):
        raise ValueError(f"powers of shape {powers.shape} are not (seeds, {shape.depth} layers, 4)")
    bound = None
    if norm == "layer":
        bound = np.array([1.0 - shape.bound(layer) for layer in range(1, shape.depth + 1)])
    return PowerPanel(norm_label(norm), powers, bound)
