"""Random nets over norms and seeds, into one results file per norm, seed by seed: what is done is not done again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

from torch import Tensor

from analysis.norm_name import exact_factory
from analysis.random_power import LayerMeasures, measure_layer, propagate
from analysis.results_file import ResultsError, read_results, write_results
from models.random_net import RandomNetShape

MEASURES = ("layers", "effective_channels", "residual_variance")  # lists with one entry for each seed


def results_paths(folder: Path, norms: Sequence[str]) -> Dict[str, Path]:
    """Where each norm's results are: folder/power.json for one norm, folder/<norm>/power.json for several."""
    return {norm: (folder if len(norms) == 1 else folder / norm) / "power.json" for norm in norms}


def run_random_nets(
    path: Path,
    norm: str,
    shape: RandomNetShape,
    *,
    seeds: int,
    images_of_seed: Callable[[int], Tensor],
    images_described: str,
    advance: Callable[[], object] = lambda: None,
) -> Dict[str, Any]:
    """Measure random nets with seeds 0 to seeds - 1, each on the images of its seed, and write the results.

    Args:
        path: the results file. One that holds seeds of the same settings is continued; it keeps further seeds.
        norm: a short name, see analysis.norm_name.
        shape: of the nets.
        seeds: how many.
        images_of_seed: seed -> (N, C, H, W) images.
        images_described: what the images are; part of the settings.
        advance: called after each layer, and for each layer that was there already.

    Returns:
        norm, images, shape, rho, and with one entry per seed: layers ([layer][P1, P2, P3, P4]), effective_channels and
        residual_variance ([layer]).

    Raises:
        ResultsError: the file holds results of other settings.
        ValueError: a norm that cannot be built.
    """
    factory = exact_factory(norm)
    settings = {"norm": norm, "images": images_described, "shape": asdict(shape), "rho": shape.rho}
    results: Dict[str, Any] = {**settings, **{key: [] for key in MEASURES}}
    if path.exists():
        results = read_results(path)
        different = [f"{key} {results.get(key)!r}" for key, value in settings.items() if results.get(key) != value]
        if different:
            raise ResultsError(f"{path} holds results of other settings ({'; '.join(different)}); use another --out")
        if not all(isinstance(results.get(key), list) for key in MEASURES):
            raise ResultsError(f"{path} lacks one of {', '.join(MEASURES)}; remove it, or use another --out")
    for _ in range(min(seeds, len(results["layers"])) * shape.depth):
        advance()
    for seed in range(len(results["layers"]), seeds):
        measures: List[LayerMeasures] = []
        for values in propagate(shape, factory, images_of_seed(seed), seed):
            measures.append(measure_layer(values))
            del values  # the next layer needs its memory
            advance()
        results["layers"].append([each.power for each in measures])
        results["effective_channels"].append([each.effective_channels for each in measures])
        results["residual_variance"].append([each.residual_variance for each in measures])
        write_results(path, results)
    return {**results, **{key: results[key][:seeds] for key in MEASURES}}
