"""Photo patches: 4,000 + 1,000 colour images of 64 x 64 pixels, cut from ten photographs; the class is the photograph.

A test of the JPEG path, made at set-up from photographs that are in two Python packages: it shows that real files are
decoded, cropped and learnt from. It cannot compare norms: the class is in a patch's colour mean and contrast, which
norms of single images remove (`python -m datasets.shortcuts` measures it), and the patches to evaluate on come from a
few dozen blocks.

A patch lies in one block of its photograph (see photo_blocks.py), at a multiple of 4 pixels from its corner: no pixel
is in both halves, while patches of one half overlap. Patches whose brightness hardly varies (standard deviation below
4) show no more than a colour and are left out. Saved as JPEG of quality 90.

    python -m datasets.photo_patches [--data-dir DIR]      makes the files and prints the folder that holds them
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from configs.command_line import run_command
from configs.schema import DataConfig
from datasets.data_sets import DataSets, EvaluationImages, TrainingImages, hash_parts
from datasets.errors import DataError
from datasets.fetch_lock import fetch_lock
from datasets.folder import data_folder, missing_data
from datasets.image_folder import FolderImages, open_folder
from datasets.images.decode import decode
from datasets.images.encoded_image import say_decoder
from datasets.images.transforms import Augmentation, to_tensor
from datasets.keyed_random import KeyedRandom
from datasets.obtain_command import obtain_command
from datasets.photo_blocks import BLOCK, blocks
from datasets.photo_files import obtain_photos

FOLDER = "photo_patches"
PATCH = 64
STEP = 4
QUALITY = 90
LEAST_DEVIATION = 4.0
PATCHES_PER_CLASS = {"train": 400, "val": 100}

# Per channel, of all pixels / 255 of the training patches; a test recomputes them.
MEAN = (0.4710, 0.3641, 0.3176)
STD = (0.3172, 0.2488, 0.2515)


def places(height: int, width: int) -> Iterator[Tuple[str, int, int]]:
    """Give half, top and left of every patch of a photograph."""
    for half, top, left in blocks(height, width):
        for down in range(0, BLOCK - PATCH + 1, STEP):
            for right in range(0, BLOCK - PATCH + 1, STEP):
                yield half, top + down, left + right


def choose_patches(pixels: np.ndarray, name: str) -> Dict[str, List[np.ndarray]]:
    """Return each half's patches of a photograph, (64, 64, 3) each, a random choice keyed on its name.

    Raises:
        DataError: the photograph is too small or too flat.
    """
    patches: Dict[str, List[np.ndarray]] = {half: [] for half in PATCHES_PER_CLASS}
    for half, top, left in places(*pixels.shape[:2]):
        patch = pixels[top : top + PATCH, left : left + PATCH]
        if patch.mean(axis=2).std() >= LEAST_DEVIATION:
            patches[half].append(patch)
    random = KeyedRandom(*name.encode())
    for half, count in PATCHES_PER_CLASS.items():
        candidates = patches[half]
        if len(candidates) < count:
            raise DataError(f"photograph {name} has {len(candidates)} patches for {half}, {count} are needed")
        for place in range(count):  # the first steps of a shuffle
            other = place + random.integer(len(candidates) - place)
            candidates[place], candidates[other] = candidates[other], candidates[place]
        patches[half] = candidates[:count]
    return patches


def write_patches(photos: Dict[str, bytes], folder: Path) -> None:
    """Write the patches of all photographs, in the layout of image_folder."""
    for name, content in photos.items():
        for half, patches in choose_patches(np.asarray(decode(BytesIO(content))), name).items():
            (folder / half / name).mkdir(parents=True)
            for number, patch in enumerate(patches):
                Image.fromarray(patch).save(folder / half / name / f"{number:03d}.jpg", quality=QUALITY)


def obtain_patches(configured: Optional[str]) -> Path:
    """Return the folder of the patches, making them where they are missing.

    Args:
        configured: data.dir.

    Raises:
        DataError: they cannot be made.
    """
    folder = data_folder(configured) / FOLDER
    if folder.is_dir():
        return folder
    try:
        with fetch_lock(folder.parent, FOLDER):
            if not folder.is_dir():
                temporary = Path(tempfile.mkdtemp(prefix=f".{FOLDER}-", dir=folder.parent))
                try:
                    write_patches(obtain_photos(), temporary)
                    os.chmod(temporary, 0o755)  # mkdtemp's own is for one user alone
                    os.replace(temporary, folder)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    except (DataError, OSError) as error:
        layout = f"the folder {FOLDER} that `python -m datasets.photo_patches` makes"
        raise missing_data(FOLDER, configured, layout, str(error)) from error
    return folder


def read_patches(folder: Path) -> Dict[str, FolderImages]:
    """Return both halves.

    Raises:
        DataError: patches are missing or too many.
    """
    halves = open_folder(folder)
    for half, images in halves.items():
        expected = PATCHES_PER_CLASS[half] * len(images.class_names)
        if len(images) != expected:
            raise DataError(
                f"{folder / half}: {len(images)} patches, expected {expected}; remove {folder} to remake it"
            )
    return halves


def build(config: DataConfig, seed: int) -> DataSets:
    """Return the patches, making them where they are missing.

    Raises:
        DataError: that fails.
    """
    say_decoder()
    halves = read_patches(obtain_patches(config.dir))
    augmentation = Augmentation(PATCH, config.crop_padding, config.min_crop_area, config.horizontal_flip)
    return DataSets(
        train=TrainingImages(halves["train"], augmentation, seed),
        evaluation=EvaluationImages(halves["val"], to_tensor),
        num_classes=len(halves["train"].class_names),
        channels=3,
        image_size=PATCH,
        mean=MEAN,
        std=STD,
        class_names=halves["train"].class_names,
        fingerprint=hash_parts([images.fingerprint.encode() for images in halves.values()]),
    )


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Make and check the files; return the exit code."""
    return obtain_command("photo_patches", "Make the photo patches.", _obtain_and_check, arguments)


def _obtain_and_check(data_dir: Optional[str]) -> Path:
    folder = obtain_patches(data_dir)
    read_patches(folder)
    return folder


if __name__ == "__main__":
    sys.exit(run_command(main))
