"""Fashion-MNIST: 60,000 + 10,000 gray images of clothes, 28 x 28, ten classes.

Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
2017.

    python -m datasets.fashion_mnist [--data-dir DIR]      obtains the files and prints the folder that holds them
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Optional, Sequence

import numpy as np

from configs.command_line import run_command
from configs.schema import DataConfig
from datasets.data_sets import DataSets
from datasets.errors import DataError
from datasets.fashion_mnist_files import find_file, obtain_files
from datasets.idx import read_idx
from datasets.memory import ImagesInMemory, data_sets_in_memory
from datasets.obtain_command import obtain_command

IMAGE_SIZE = 28
NUM_IMAGES = {"train": 60_000, "t10k": 10_000}
CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

# Of all pixels / 255 of the 60,000 training images; a test recomputes them.
MEAN = (0.2860,)
STD = (0.3530,)


def read_half(folder: Path, half: str) -> ImagesInMemory:
    """Return one half ("train" or "t10k") of the files in `folder`.

    Raises:
        DataError: a file is missing or damaged.
    """
    count = NUM_IMAGES[half]
    images = read_idx(find_file(folder, f"{half}-images-idx3-ubyte"), (count, IMAGE_SIZE, IMAGE_SIZE))
    labels_path = find_file(folder, f"{half}-labels-idx1-ubyte")
    labels = read_idx(labels_path, (count,))
    if labels.max() >= len(CLASS_NAMES):
        raise DataError(
            f"{labels_path} is damaged: it holds the label {labels.max()}, the largest is {len(CLASS_NAMES) - 1}"
        )
    return ImagesInMemory(images[:, np.newaxis], labels)


def build(config: DataConfig, seed: int) -> DataSets:
    """Return Fashion-MNIST, fetching its files where they are missing.

    Raises:
        DataError: that fails.
    """
    folder = obtain_files(config.dir)
    return data_sets_in_memory(
        config,
        seed,
        read_half(folder, "train"),
        read_half(folder, "t10k"),
        mean=MEAN,
        std=STD,
        class_names=CLASS_NAMES,
    )


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Obtain and check the files; return the exit code."""
    return obtain_command("fashion_mnist", "Obtain Fashion-MNIST.", _obtain_and_check, arguments)


def _obtain_and_check(data_dir: Optional[str]) -> Path:
    folder = obtain_files(data_dir)
    for half in NUM_IMAGES:
        read_half(folder, half)
    return folder


if __name__ == "__main__":
    sys.exit(run_command(main))
