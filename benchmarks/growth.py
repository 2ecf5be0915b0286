"""How cost grows: time and saved memory of GN+PN and of batch norm against batch, pixels, channels, groups and depth.

    python -m benchmarks.growth
    python -m benchmarks.growth --quick     four points a curve for the layer, three for the depth

One quantity varies at a time, the others keep their middle value. Batch, pixels, channels and groups are those of one
layer with ReLU, forward plus backward; depth is that of a whole network of small images, one training step. The growth
exponent is the slope of log(cost) against log(quantity): 1 is linear, 0 does not grow.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from backends.host_memory import keep_freed_memory
from benchmarks.memory import SavedBytes, measure_saved_bytes
from benchmarks.networks import BATCH_NORM, GNPN, GNPN_RECOMPUTE, NCHW_FLOAT32, VARIANTS, Workload, training_step
from benchmarks.protocol import measure
from benchmarks.results import RESULTS, write_results
from normact import NormActFactory

MIDDLE = {"batch": 16, "pixels": 784, "channels": 256, "groups": 8}
LAYER_VALUES: Dict[str, Tuple[int, ...]] = {
    "batch": (2, 4, 8, 16, 32),
    "pixels": (49, 196, 784, 1764, 3136),
    "channels": (32, 64, 128, 256, 512),
    "groups": (1, 4, 8, 32, 256),
}
DEPTHS = (8, 20, 32, 44, 56)
NETWORK_IMAGES = 16
LAYERS = (BATCH_NORM, GNPN)


def layer_case(batch: int, pixels: int, channels: int, groups: int) -> Tuple[Dict[str, nn.Module], Tensor]:
    """Return the two layers and their input; pixels are those of a square image."""
    side = math.isqrt(pixels)
    layers: Dict[str, nn.Module] = {
        BATCH_NORM: VARIANTS[BATCH_NORM](channels, "relu"),
        GNPN: NormActFactory(norm="group", num_groups=groups)(channels, "relu"),
    }
    return layers, torch.randn(batch, channels, side, side)


def forward_backward(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    leaf, gradient = x.clone().requires_grad_(), torch.randn_like(x)

    def run() -> None:
        torch.autograd.backward(layer(leaf), gradient)
        leaf.grad = None
        layer.zero_grad()

    return run


def saved_by_layer(layer: nn.Module, x: Tensor) -> int:
    """Return bytes kept by the layer, its input included."""
    saved = SavedBytes(layer)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda kept: kept):
        layer(x.clone().requires_grad_())
    return saved.activations


def layer_points(quantity: str, values: Sequence[int], repetitions: int) -> List[Dict[str, Any]]:
    """Time and memory at each value of one quantity."""
    points = []
    for value in values:
        layers, x = layer_case(**{**MIDDLE, quantity: value})
        runs = {name: forward_backward(layer, x) for name, layer in layers.items()}
        timings = measure(runs, BATCH_NORM, repetitions=repetitions)
        points.append({
            "value": value,
            "milliseconds": {name: timing.milliseconds for name, timing in timings.items()},
            "saved_bytes": {name: saved_by_layer(layer, x) for name, layer in layers.items()},
        })  # fmt: skip
    return points


def depth_points(depths: Sequence[int], repetitions: int) -> List[Dict[str, Any]]:
    """Time of a training step and saved memory at each depth."""
    points = []
    for depth in depths:
        workload = Workload(f"resnet{depth}", NETWORK_IMAGES, 32, NCHW_FLOAT32, 10)
        names = (BATCH_NORM, GNPN, GNPN_RECOMPUTE)
        timings = measure(
            {name: training_step(workload, VARIANTS[name]) for name in names}, BATCH_NORM, repetitions=repetitions
        )
        points.append({
            "value": depth,
            "milliseconds": {name: timing.milliseconds for name, timing in timings.items()},
            "saved_bytes": {name: measure_saved_bytes(workload, name).activations for name in names},
        })  # fmt: skip
    return points


def growth_exponent(values: Sequence[float], costs: Sequence[float]) -> float:
    """Least-squares slope of log(cost) in log(value)."""
    x, y = [math.log(value) for value in values], [math.log(cost) for cost in costs]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / sum((a - mean_x) ** 2 for a in x)


def curve(quantity: str, points: List[Dict[str, Any]]) -> Dict[str, Any]:
    """Return one row: the points of a quantity and the exponents of each variant."""
    values = [point["value"] for point in points]
    exponents = {
        cost: {name: growth_exponent(values, [point[cost][name] for point in points]) for name in points[0][cost]}
        for cost in ("milliseconds", "saved_bytes")
    }
    print(f"{quantity} {values}: exponents of time {exponents['milliseconds']}, of memory {exponents['saved_bytes']}")
    return {"quantity": quantity, "points": points, "exponents": exponents}


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer points")
    parser.add_argument("--only", default="", help="quantities whose name contains this")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    torch.manual_seed(0)
    rows = []
    for quantity, values in LAYER_VALUES.items():
        if options.only in quantity:
            chosen = values[:4] if options.quick else values
            rows.append(curve(quantity, layer_points(quantity, chosen, options.repetitions)))
    if options.only in "depth":
        depths = DEPTHS[:3] if options.quick else DEPTHS
        rows.append(curve("depth", depth_points(depths, options.repetitions)))
    settings = {"repetitions": options.repetitions, "layer": MIDDLE, "network_images": NETWORK_IMAGES}
    write_results("growth", settings, rows, folder=options.results)


if __name__ == "__main__":
    main()
