"""Plots of the benchmarks, as SVG files that are the same for the same numbers.

bandwidth.svg   share of a copy's bandwidth by shape: how far the layer is from what memory allows
ratios.svg      time and saved memory of whole networks, relative to batch norm
growth.svg      time and saved memory against batch, pixels, channels, groups and depth
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Tuple

import matplotlib

from benchmarks.results import ROOT

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PLOTS = ROOT / "benchmarks" / "plots"


def draw_plots(results: Dict[str, Dict[str, Any]], folder: Path) -> List[Path]:
    """Draw all three into a folder; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    # Identifiers in the file are a hash of this instead of a random number.
    with plt.rc_context({"svg.hashsalt": "normact", "svg.fonttype": "none", "font.size": 8}):
        figures = {
            "bandwidth": _bandwidth(results["layer"]["layers"]),
            "ratios": _ratios(results["step"]["rows"], results["memory"]["rows"]),
            "growth": _growth(results["growth"]["rows"]),
        }
        paths = []
        for name, figure in figures.items():
            paths.append(folder / f"{name}.svg")
            figure.savefig(paths[-1], metadata={"Date": None})
            plt.close(figure)
    return paths


def _bandwidth(settings: List[Dict[str, Any]]) -> Any:
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for setting in settings:
        points = [
            ("x".join(map(str, shape["shape"][1:3])), shape["copy_bandwidth_share"])
            for shape in setting["shapes"]
            if shape["copy_bandwidth_share"] is not None
        ]
        if points:
            axes.plot(*zip(*points), marker="o", label=setting["setting"])
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="channels x side", ylabel="share of a copy's bandwidth (1: roofline)", ylim=(0, 1.1))
    axes.legend(fontsize=7)
    return figure


def _ratios(step_rows: List[Dict[str, Any]], memory_rows: List[Dict[str, Any]]) -> Any:
    panels: List[Tuple[str, str, Dict[str, float]]] = [
        (row["workload"], "time of a training step", {n: t["ratio"] for n, t in row["timings"].items()})
        for row in step_rows
    ]
    panels += [
        (row["workload"], "kept for backward", {n: v["total_ratio"] for n, v in row["variants"].items()})
        for row in memory_rows
    ]
    height = (len(panels) + 1) // 2
    figure, grid = plt.subplots(height, 2, figsize=(9, 1.9 * height), layout="constrained", squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (workload, what, ratios) in zip(grid.flat, panels):
        axes.barh(list(ratios), list(ratios.values()), color="tab:blue")
        axes.axvline(1.0, color="black", linewidth=0.8, linestyle="--")
        axes.invert_yaxis()
        axes.set_title(f"{workload}: {what} / batch norm", fontsize=8)
    return figure


def _growth(rows: List[Dict[str, Any]]) -> Any:
    figure, grid = plt.subplots(2, len(rows), figsize=(2.6 * len(rows), 5), layout="constrained", squeeze=False)
    for column, row in enumerate(rows):
        values = [point["value"] for point in row["points"]]
        for axes, cost, unit, scale in (
            (grid[0][column], "milliseconds", "ms", 1.0),
            (grid[1][column], "saved_bytes", "MB kept for backward", 1e-6),
        ):
            for name, exponent in row["exponents"][cost].items():
                costs = [scale * point[cost][name] for point in row["points"]]
                axes.loglog(values, costs, marker="o", label=f"{name}: exponent {exponent:.2f}")
            axes.set(xlabel=row["quantity"], ylabel=unit)
            axes.legend(fontsize=6)
    return figure
