"""Time of one norm+activation layer, forward plus backward, as a ratio to eager nn.BatchNorm2d + activation.

    python -m benchmarks.layer                 the whole table
    python -m benchmarks.layer --out layer.json

The layer is used four times in sequence, as in a network, where a layer's gradient comes from the one above and is
nobody else's. Shapes are those of ResNet-50 at 224 px with 16 images, and of ResNet-20 at 32 px with 128. Other layers
are compared in benchmarks/peers.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import torch
from torch import Tensor, nn

from backends.host_memory import keep_freed_memory
from benchmarks.protocol import Timing, copy_bytes_per_second, measure
from normact import NormActFactory
from normact.kernels import fused_proxy_statistics, why_not_fused

NUM_GROUPS = 8
LARGE = ((16, 64, 112), (16, 256, 56), (16, 512, 28), (16, 1024, 14), (16, 2048, 7))
SMALL = ((128, 16, 32), (128, 32, 16), (128, 64, 8))
LAYERS = 4
# Tensors that forward reads and writes (2) and backward reads and writes (3), each once.
TENSOR_PASSES = 5
BANDWIDTH_BYTES = 24_000_000
ACTIVATION_MODULES = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


class Case(NamedTuple):
    """One column of the table."""

    images: int
    channels: int
    size: int
    dtype: torch.dtype
    memory_format: torch.memory_format
    activation: str

    def tensor(self) -> Tensor:
        shape = (self.images, self.channels, self.size, self.size)
        return torch.randn(shape).to(self.dtype).contiguous(memory_format=self.memory_format)


class Setting(NamedTuple):
    """A family of cases whose geometric mean has a target."""

    name: str
    shapes: Sequence[Sequence[int]]
    dtype: torch.dtype
    memory_format: torch.memory_format
    activation: str


SETTINGS = (
    Setting("nchw float32 relu", LARGE, torch.float32, torch.contiguous_format, "relu"),
    Setting("nchw bfloat16 relu", LARGE, torch.bfloat16, torch.contiguous_format, "relu"),
    Setting("nhwc float32 relu", LARGE, torch.float32, torch.channels_last, "relu"),
    Setting("nhwc bfloat16 relu", LARGE, torch.bfloat16, torch.channels_last, "relu"),
    Setting("nchw float32 silu", LARGE, torch.float32, torch.contiguous_format, "silu"),
    Setting("nhwc float32 silu", LARGE, torch.float32, torch.channels_last, "silu"),
    Setting("nchw bfloat16 silu", LARGE, torch.bfloat16, torch.contiguous_format, "silu"),
    Setting("nhwc bfloat16 silu", LARGE, torch.bfloat16, torch.channels_last, "silu"),
    Setting("small images nchw float32 relu", SMALL, torch.float32, torch.contiguous_format, "relu"),
)


def forward_backward(layer: nn.Module, x: Tensor, gradient: Tensor) -> Callable[[], None]:
    """Return a function that uses a layer LAYERS times as training does: gradients to its input and its parameters."""
    leaf = x.detach().requires_grad_()
    parameters = list(layer.parameters())

    def run() -> None:
        out = leaf
        for _ in range(LAYERS):
            out = layer(out)
        out.backward(gradient)
        leaf.grad = None
        for parameter in parameters:
            parameter.grad = None

    return run


def own_layers(case: Case) -> Dict[str, nn.Module]:
    """Return the baseline and this project's layer."""
    act = ACTIVATION_MODULES[case.activation]
    return {
        "batch norm": nn.Sequential(nn.BatchNorm2d(case.channels), act()),
        "ours": NormActFactory(norm="group", num_groups=NUM_GROUPS, kernel="fused")(case.channels, case.activation),
    }


def time_case(case: Case, repetitions: int) -> Dict[str, Timing]:
    """Both layers of one case, interleaved."""
    layers = own_layers(case)
    x, gradient = case.tensor(), case.tensor()
    if case.dtype == torch.bfloat16:
        layers = {name: Bfloat16Input(layer) for name, layer in layers.items()}
    runs = {name: forward_backward(layer.train(), x, gradient) for name, layer in layers.items()}
    return measure(runs, "batch norm", repetitions=repetitions)


class Bfloat16Input(nn.Module):
    """A layer under autocast: bfloat16 activations, float32 parameters."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.layer(x).to(x.dtype)


def time_proxy_statistics(channels: int = 2048) -> Dict[str, float]:
    """Microseconds of the proxy statistics of one layer, forward, by activation.

    Raises:
        RuntimeError: there are no fused kernels here, with the reason.
    """
    reason = why_not_fused(torch.zeros(1, 1), 1, "contiguous", "relu")  # builds and loads them at the first call
    if reason is not None:
        raise RuntimeError(f"proxy statistics cannot be timed: {reason}")
    rows = [torch.ones(channels), *(0.1 * torch.randn(channels) for _ in range(3))]
    for row in rows:
        row.requires_grad_()
    runs = {
        name: (lambda name=name: fused_proxy_statistics(name, rows[0], rows[1], rows[2], rows[3], 0.03))
        for name in ("relu", "identity", "silu", "gelu")
    }
    return {name: 1e3 * timing.milliseconds for name, timing in measure(runs, "relu", repetitions=31).items()}


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm."""
    return math.exp(sum(math.log(v) for v in values) / len(values))


def time_setting(setting: Setting, repetitions: int) -> Dict[str, object]:
    """Return all shapes of one setting: ratios, and the bandwidth share of our layer where the tensor is large."""
    rows: List[Dict[str, object]] = []
    for images, channels, size in setting.shapes:
        case = Case(images, channels, size, setting.dtype, setting.memory_format, setting.activation)
        timings = time_case(case, repetitions)
        num_bytes = images * channels * size * size * (2 if setting.dtype == torch.bfloat16 else 4)
        share: Optional[float] = None
        if num_bytes >= BANDWIDTH_BYTES:
            moved = LAYERS * TENSOR_PASSES * num_bytes / (1e-3 * timings["ours"].milliseconds)
            share = moved / copy_bytes_per_second(num_bytes)
        rows.append({
            "shape": [images, channels, size, size],
            "layers": LAYERS,
            "copy_bandwidth_share": share,
            "timings": {name: dataclasses.asdict(timing) for name, timing in timings.items()},
        })  # fmt: skip
        print(_line(setting.name, channels, size, timings, share), flush=True)
    names = rows[0]["timings"].keys()  # type: ignore[attr-defined]
    means = {n: geometric_mean([row["timings"][n]["ratio"] for row in rows]) for n in names}  # type: ignore[index]
    print(f"{setting.name}: geometric mean " + ", ".join(f"{n} {m:.3f}" for n, m in means.items()), flush=True)
    return {"setting": setting.name, "geometric_mean": means, "shapes": rows}


def _line(name: str, channels: int, size: int, timings: Dict[str, Timing], share: Optional[float]) -> str:
    parts = [
        f"{n} {t.ratio:.3f} [{t.first_quartile:.3f}-{t.third_quartile:.3f}] {t.milliseconds / LAYERS:.2f} ms"
        for n, t in timings.items()
    ]
    end = "" if share is None else f", {100 * share:.0f} % of a copy's bandwidth"
    return f"{name} {channels}x{size}: " + "; ".join(parts) + end


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", help="write the numbers to this JSON file")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    results = [time_setting(s, options.repetitions) for s in SETTINGS if options.only in s.name]
    statistics = time_proxy_statistics() if options.only in "proxy statistics" else {}
    for name, microseconds in statistics.items():
        print(f"proxy statistics of 2048 channels, {name}: {microseconds:.0f} us")
    if options.out:
        machine = {"processor": platform.processor(), "threads": options.threads, "torch": torch.__version__}
        with open(options.out, "w") as file:
            json.dump({"machine": machine, "layers": results, "proxy_statistics_us": statistics}, file, indent=1)


if __name__ == "__main__":
    main()
