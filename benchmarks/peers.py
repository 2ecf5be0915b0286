"""Time of one norm+activation layer with our kernels and in other ways, as a ratio to batch norm + activation.

    python -m benchmarks.peers
    python -m benchmarks.peers --quick      two shapes, NCHW float32

Peers: torch's batch and group norm, timm's GroupNormAct, EvoNorm-S0 and filter response norm, our reference in closed
form and with 256 proxy samples, and torch.compile of the reference and of batch norm. Only ours, the references and
their compiled form have Proxy Normalization.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

import torch
from torch import Tensor, nn

from backends.host_memory import keep_freed_memory
from benchmarks.layer import ACTIVATION_MODULES, NUM_GROUPS, SETTINGS, Case, Setting, forward_backward, geometric_mean
from benchmarks.protocol import CPU, measure
from benchmarks.results import RESULTS, write_results
from datasets.images import torchvision_import  # noqa: F401  timm needs torchvision's operators
from normact import NormActFactory

BASELINE, OURS = "batch norm", "ours"
QUICK_SHAPES = ((16, 256, 56), (16, 1024, 14))


class Autocast(nn.Module):
    """A layer under autocast: activations of this type, float32 parameters."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.layer, self.dtype, self.device = layer, dtype, device

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=self.dtype):
            return self.layer(x).to(x.dtype)


def peer_layers(channels: int, activation: str) -> Dict[str, nn.Module]:
    """Return all layers that are compared, the baseline first."""
    from timm.layers import (  # after datasets.images.torchvision_import
        EvoNorm2dS0,
        FilterResponseNormAct2d,
        GroupNormAct,
    )

    act = ACTIVATION_MODULES[activation]

    def group_norm(kernel: str, **options: Any) -> nn.Module:
        return NormActFactory(norm="group", num_groups=NUM_GROUPS, kernel=kernel, **options)(channels, activation)

    compiled_reference, compiled_batch_norm = group_norm("reference"), nn.Sequential(nn.BatchNorm2d(channels), act())
    compiled_reference.compile()
    compiled_batch_norm.compile()
    return {
        BASELINE: nn.Sequential(nn.BatchNorm2d(channels), act()),
        OURS: group_norm("fused"),
        "ours without PN": group_norm("fused", proxy=False),
        "torch group norm": nn.Sequential(nn.GroupNorm(NUM_GROUPS, channels), act()),
        "timm GroupNormAct": GroupNormAct(channels, NUM_GROUPS, act_layer=act),
        "timm EvoNorm-S0": EvoNorm2dS0(channels, groups=NUM_GROUPS),
        "timm FRN": FilterResponseNormAct2d(channels, act_layer=act),
        "reference": group_norm("reference"),
        "reference, 256 samples": group_norm("reference", proxy_method="sampled", num_samples=256),
        "reference, torch.compile": compiled_reference,
        "batch norm, torch.compile": compiled_batch_norm,
    }


def time_peers(case: Case, repetitions: int, device: torch.device = CPU) -> Dict[str, Any]:
    """Return one row: all peers at one shape, interleaved."""
    torch._dynamo.reset()  # every shape is compiled as a static one
    with device:
        x, gradient = case.tensor(), case.tensor()
        layers = peer_layers(case.channels, case.activation)
    if case.dtype != torch.float32:
        layers = {name: Autocast(layer, case.dtype, device) for name, layer in layers.items()}
    runs = {name: forward_backward(layer.train(), x, gradient) for name, layer in layers.items()}
    timings = measure(runs, BASELINE, repetitions=repetitions, device=device)
    shape = [case.images, case.channels, case.size, case.size]
    print(f"{shape}: " + ", ".join(f"{name} {timing.ratio:.3f}" for name, timing in timings.items()), flush=True)
    return {"shape": shape, "timings": {name: dataclasses.asdict(timing) for name, timing in timings.items()}}


def time_setting(
    setting: Setting, shapes: Sequence[Sequence[int]], repetitions: int, device: torch.device = CPU
) -> Dict[str, Any]:
    """Return all shapes of one setting, and the geometric means of the ratios."""
    cases = [
        Case(images, channels, size, setting.dtype, setting.memory_format, setting.activation)
        for images, channels, size in shapes
    ]
    rows = [time_peers(case, repetitions, device) for case in cases]
    means = {name: geometric_mean([row["timings"][name]["ratio"] for row in rows]) for name in rows[0]["timings"]}
    print(f"{setting.name}: geometric mean " + ", ".join(f"{n} {m:.3f}" for n, m in means.items()), flush=True)
    return {"setting": setting.name, "geometric_mean": means, "shapes": rows}


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only two shapes of the first setting")
    parser.add_argument("--only", default="relu", help="settings of benchmarks.layer whose name contains this")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    torch.manual_seed(0)
    settings = [setting for setting in SETTINGS if options.only in setting.name]
    if options.quick:
        settings = settings[:1]
    rows = [
        time_setting(setting, QUICK_SHAPES if options.quick else setting.shapes, options.repetitions)
        for setting in settings
    ]
    write_results("peers", {"repetitions": options.repetitions, "groups": NUM_GROUPS}, rows, folder=options.results)


if __name__ == "__main__":
    main()
