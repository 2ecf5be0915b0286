"""The layer and its peers on a GPU: the same protocol with events of the stream, and the bandwidth against a copy.

    python -m benchmarks.layer_cuda

Shapes are those of ResNet-50 at 224 px with 128 images. The first call of each shape compiles the Triton kernels; that
is warm-up and not timed. Without a GPU it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch

from benchmarks.layer import LARGE, NUM_GROUPS, TENSOR_PASSES, Setting
from benchmarks.peers import OURS, time_setting
from benchmarks.protocol import copy_bytes_per_second
from benchmarks.results import RESULTS, write_results

IMAGES = 128
SHAPES = tuple((IMAGES, channels, size) for _, channels, size in LARGE)
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SETTINGS = tuple(
    Setting(f"{layout} {dtype} {activation}", SHAPES, DTYPES[dtype], LAYOUTS[layout], activation)
    for activation in ("relu", "silu")
    for layout in LAYOUTS
    for dtype in DTYPES
)


def with_bandwidth(row: Dict[str, Any], setting: Setting, device: torch.device) -> Dict[str, Any]:
    """Return the row with our share of a copy's bandwidth at each shape."""
    for entry in row["shapes"]:
        num_bytes = torch.Size(entry["shape"]).numel() * torch.empty((), dtype=setting.dtype).element_size()
        moved = TENSOR_PASSES * num_bytes / (1e-3 * entry["timings"][OURS]["milliseconds"])
        entry["copy_bandwidth_share"] = moved / copy_bytes_per_second(num_bytes, device=device)
    return row


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="settings whose name contains this")
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device is available. GPU: not measured", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    torch.manual_seed(0)
    rows: List[Dict[str, Any]] = []
    for setting in SETTINGS:
        if options.only in setting.name:
            row = time_setting(setting, setting.shapes, options.repetitions, device)
            rows.append(with_bandwidth(row, setting, device))
    settings = {"repetitions": options.repetitions, "groups": NUM_GROUPS}
    write_results("layer_cuda", settings, rows, folder=options.results, device=torch.cuda.get_device_name(device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
