"""Draw examples of a data set, a row for each class.

    python -m datasets.picture --config scenes_rn10_bn --out scenes.png [--columns 16] [--set data.dir=DIR]

Shown are the first training images of each class, as they are stored, not augmented; of many classes the first twenty.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from configs import load_config
from configs.arguments import output_file, positive
from configs.command_line import run_command
from configs.exit_codes import EXPLAINED, explain
from configs.picture_file import drawable, plain_texts, save_picture
from configs.schema import DataConfig
from datasets import build_datasets
from datasets.errors import DataError
from datasets.images.transforms import to_tensor

CLASSES = 20
GAP = 2  # pixels of white between images
INCHES = 0.7  # of an image


def first_of_each_class(source: Any, num_classes: int, count: int) -> List[List[Tensor]]:
    """Return up to `count` images, (C, H, W) uint8, of each class below num_classes, the first ones of `source`."""
    found: Dict[int, List[Tensor]] = {label: [] for label in range(num_classes)}
    missing = num_classes * count
    for index in range(len(source)):
        image, label = source.load(index)
        if label < num_classes and len(found[label]) < count:
            found[label].append(to_tensor(image))
            missing -= 1
            if missing == 0:
                break
    return list(found.values())


def tile(rows: Sequence[Sequence[Tensor]], size: int) -> Tensor:
    """Return one image of all, (H, W, 3) uint8, on white.

    Args:
        rows: images (1 or 3, size, size).
        size: pixels per side.

    Raises:
        DataError: an image of another size.
    """
    step = size + GAP
    canvas = torch.full((3, len(rows) * step - GAP, max(map(len, rows)) * step - GAP), 255, dtype=torch.uint8)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            if image.shape[1:] != (size, size):
                raise DataError(
                    f"an image is {tuple(image.shape[1:])}, others {size} x {size}; a picture needs one size"
                )
            canvas[:, row * step : row * step + size, column * step : column * step + size] = image
    return canvas.permute(1, 2, 0)


@plain_texts()
def draw(config: DataConfig, columns: int, out: Path) -> None:
    """Write the picture.

    Raises:
        ConfigError, DataError: as build_datasets.
        OSError: `out` cannot be written.
    """
    data_sets = build_datasets(config, seed=0)
    names = [drawable(name) for name in data_sets.class_names[:CLASSES]]
    rows = first_of_each_class(data_sets.train.source, len(names), columns)
    size = data_sets.image_size
    figure = Figure(figsize=(columns * INCHES + 1.2, len(rows) * INCHES + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(tile(rows, size).numpy(), interpolation="nearest")
    axes.set_title(f"{config.name}: training images, {size} x {size} pixels", fontsize=10)
    axes.set_yticks([row * (size + GAP) + size / 2 for row in range(len(rows))], names)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    save_picture(figure, out, dpi=120)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Write the picture; return 0, 2 for a bad configuration, 3 for bad data or 74 where nothing can be written."""
    parser = argparse.ArgumentParser(prog="python -m datasets.picture", description="Draw examples of a data set.")
    parser.add_argument(
        "--config", required=True, metavar="NAME|PATH", help="an experiment of configs/, or a YAML file"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value; null leaves it out"
    )
    parser.add_argument(
        "--out", type=output_file, required=True, metavar="FILE.png", help="the picture's file; overwritten"
    )
    parser.add_argument("--columns", type=positive, default=16, help="images of each class")
    options = parser.parse_args(arguments)
    try:
        draw(load_config(options.config, options.set).data, options.columns, options.out)
    except EXPLAINED as error:
        return explain(error)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
