"""Fashion scenes: 60,000 + 10,000 colour images of 32 x 32 pixels: Fashion-MNIST's garments before photographs.

The images, labels and their order are those of Fashion-MNIST, so its classes, counts and halves; datasets/scenes.py
describes what is made of each. Every image differs in mean, contrast and colour, and none of them reveals the class:
what norms do to statistics of single images, they do here without erasing or revealing what is to be learnt.

Backgrounds come from the ten photographs of photo_files.py, divided into blocks (photo_blocks.py): no pixel is behind
both a garment to train on and one to evaluate on.

The images do not depend on a run's seed. They are made once, in about a minute of one core, and kept in the data folder
with their SHA-256 sums, which are compared at each start; files that do not match are made again.

    python -m datasets.fashion_scenes [--data-dir DIR]      makes the files and prints the folder that holds them
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Dict, Optional, Sequence

import numpy as np

from configs.bounded_file import GIB, MIB, parse_json, read_bounded
from configs.command_line import run_command
from configs.schema import DataConfig
from datasets import fashion_mnist
from datasets.data_sets import DataSets
from datasets.errors import DataError
from datasets.fashion_mnist import CLASS_NAMES, NUM_IMAGES
from datasets.fashion_mnist_files import obtain_files
from datasets.fetch_lock import fetch_lock
from datasets.folder import data_folder, missing_data
from datasets.idx import parse_idx, write_idx
from datasets.images.decode import decode
from datasets.memory import ImagesInMemory, data_sets_in_memory
from datasets.obtain_command import obtain_command
from datasets.photo_files import obtain_photos
from datasets.scenes import SIZE, compose

FOLDER = "fashion_scenes"
VERSION = 1  # of the images; files of another one are made again
RECORD = "record.json"
SOURCES = {"train": "train", "val": "t10k"}  # half -> that of Fashion-MNIST
AT_ONCE = 1000  # images; more take memory and no less time

# Per channel, of all pixels / 255 of the training images; a test recomputes them.
MEAN = (0.5001, 0.4998, 0.4997)
STD = (0.2363, 0.2366, 0.2366)


def obtain_scenes(configured: Optional[str]) -> Dict[str, ImagesInMemory]:
    """Return both halves, making their files where they are missing, damaged or of another version.

    Args:
        configured: data.dir.

    Raises:
        DataError: they cannot be made.
    """
    folder = data_folder(configured) / FOLDER
    try:
        return read_scenes(folder)
    except (DataError, OSError):  # said below, where another process has not made them meanwhile
        pass
    try:
        with fetch_lock(folder.parent, FOLDER):
            try:
                return read_scenes(folder)
            except (DataError, OSError) as error:
                if folder.exists():
                    logging.getLogger(__name__).warning("%s; making the files again", error)
            write_scenes(configured, folder)
        return read_scenes(folder)
    except (DataError, OSError) as error:
        layout = f"the folder {FOLDER} that `python -m datasets.fashion_scenes` makes"
        raise missing_data(FOLDER, configured, layout, str(error)) from error


def write_scenes(configured: Optional[str], folder: Path) -> None:
    """Compose all scenes and put their files into `folder`, the record with the sums last."""
    source = obtain_files(configured)
    photos = {name: np.asarray(decode(BytesIO(content))) for name, content in sorted(obtain_photos().items())}
    sums: Dict[str, str] = {}
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=folder.parent) as temporary:
        for half, of in SOURCES.items():
            garments = fashion_mnist.read_half(source, of)
            images = garments.images[:, 0]
            scenes = np.empty((len(images), 3, SIZE, SIZE), dtype=np.uint8)
            for first in range(0, len(images), AT_ONCE):
                part = slice(first, first + AT_ONCE)
                scenes[part] = compose(images[part], photos, half, first)
            for what, array in (("images", scenes), ("labels", garments.labels)):
                path = Path(temporary, file_name(half, what))
                write_idx(path, array)
                sums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        record = Path(temporary, RECORD)
        record.write_text(json.dumps({"version": VERSION, "sha256": sums}, indent=1) + "\n")
        # a process that reads between two of these finds a sum that does not match, and waits for the lock
        for name in [*sums, RECORD]:
            os.replace(Path(temporary, name), folder / name)


def file_name(half: str, what: str) -> str:
    return f"{half}-{what}-idx{4 if what == 'images' else 1}-ubyte"


def read_scenes(folder: Path) -> Dict[str, ImagesInMemory]:
    """Return both halves.

    Raises:
        DataError: a file is damaged or of another version.
        OSError: a file is missing or cannot be read.
    """
    path = folder / RECORD
    try:
        record = parse_json(read_bounded(path, MIB))
        version, sums = record["version"], dict(record["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged: {error!r}") from error
    if version != VERSION:
        raise DataError(f"{path}: images of version {version}, this program makes version {VERSION}")

    def read(half: str, what: str, *shape: int) -> np.ndarray:
        path = folder / file_name(half, what)
        content = read_bounded(path, GIB)
        if hashlib.sha256(content).hexdigest() != sums.get(path.name):
            raise DataError(f"{path} is damaged: its SHA-256 sum is not the one in {RECORD}")
        return parse_idx(content, path, (NUM_IMAGES[SOURCES[half]], *shape))

    return {half: ImagesInMemory(read(half, "images", 3, SIZE, SIZE), read(half, "labels")) for half in SOURCES}


def build(config: DataConfig, seed: int) -> DataSets:
    """Return the scenes, making their files where they are missing.

    Raises:
        DataError: that fails.
    """
    halves = obtain_scenes(config.dir)
    return data_sets_in_memory(
        config, seed, halves["train"], halves["val"], mean=MEAN, std=STD, class_names=CLASS_NAMES
    )


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Make and check the files; return the exit code."""
    return obtain_command("fashion_scenes", "Make the fashion scenes.", _obtain_and_check, arguments)


def _obtain_and_check(data_dir: Optional[str]) -> Path:
    obtain_scenes(data_dir)
    return data_folder(data_dir) / FOLDER


if __name__ == "__main__":
    sys.exit(run_command(main))
