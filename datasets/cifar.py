"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour photographs, 32 x 32, by torchvision's readers.

The files are pickles; torchvision compares their MD5 sums with its own list before it opens any.
Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Optional

import numpy as np

from configs.schema import DataConfig
from datasets.data_sets import DataSets
from datasets.errors import DataError
from datasets.fetch_lock import fetch_lock
from datasets.folder import data_folder, missing_data
from datasets.images.torchvision_import import torchvision
from datasets.memory import ImagesInMemory, data_sets_in_memory

# Per channel, of all pixels / 255 of the 50,000 training images (the figures in general use).
MEANS = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4865, 0.4409)}
STDS = {"cifar10": (0.2470, 0.2435, 0.2616), "cifar100": (0.2673, 0.2564, 0.2762)}


def build(config: DataConfig, seed: int) -> DataSets:
    """Return CIFAR-10 or CIFAR-100, downloading it where its files are missing.

    Raises:
        DataError: that fails.
    """
    train, evaluation = (read_or_download(config.name, config.dir, half) for half in (True, False))
    return data_sets_in_memory(
        config,
        seed,
        in_memory(train),
        in_memory(evaluation),
        mean=MEANS[config.name],
        std=STDS[config.name],
        class_names=tuple(train.classes),
    )


def in_memory(reader: Any) -> ImagesInMemory:
    """Return the images of a torchvision reader, (N, H, W, C) there and (N, C, H, W) here."""
    return ImagesInMemory(np.ascontiguousarray(reader.data.transpose(0, 3, 1, 2)), np.asarray(reader.targets))


def read_or_download(name: str, configured: Optional[str], train: bool) -> Any:
    """Return torchvision's data set: from the files in the data folder, or after downloading them there under a lock.

    Raises:
        DataError: the files are missing or damaged, and the download failed.
    """
    reader = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    folder = data_folder(configured)
    with contextlib.suppress(OSError, RuntimeError):
        return reader(str(folder), train=train, download=False)
    try:
        with fetch_lock(folder, name):
            refuse_damaged(reader, folder)
            return reader(str(folder), train=train, download=True)
    except (OSError, RuntimeError) as error:
        raise missing_data(
            name,
            configured,
            f"the folder {reader.base_folder} of the archive {reader.filename} (its Python version), or that archive",
            f"tried:\n  {folder / reader.base_folder}: incomplete or not there\n  torchvision's download: {error}",
        ) from error


def refuse_damaged(reader: Any, folder: Path) -> None:
    """Raise DataError for a file that is there with other content than was published; call it under the lock."""
    for file_name, md5 in reader.train_list + reader.test_list:
        path = folder / reader.base_folder / file_name
        if path.exists() and not torchvision.datasets.utils.check_integrity(str(path), md5):
            raise DataError(f"{path} is damaged: its MD5 sum is not {md5}; remove it and supply it again")
