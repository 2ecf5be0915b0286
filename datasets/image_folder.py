"""A folder of image files in the layout of ImageNet: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterator, List, Tuple

import numpy as np
from PIL import Image

from configs.schema import DataConfig
from datasets.data_sets import DataSets, EvaluationImages, TrainingImages, hash_parts
from datasets.decode import EXTENSIONS, decode
from datasets.errors import DataError
from datasets.folder import data_folder, missing_data
from datasets.transforms import Augmentation, CentreCrop

IMAGE_SIZE = 224
LAYOUT = "train/CLASS/NAME.jpg (or .png, ...) and val/CLASS/NAME.jpg, with the same classes in both"

# Of ImageNet's training images: the figures that published networks were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class FolderImages:
    """The image files of one half, by class in the order of names, then by file name.

    Names are held in fixed-width arrays: a million Python strings would be copied into each loading process as soon
    as it counts references to them.

    Args:
        folder: holds one folder per class.
        class_names: of the folders; the label is the place in this list.

    Raises:
        DataError: a class without images, or anything in a class folder that is not an image file by its name.
    """

    def __init__(self, folder: Path, class_names: Tuple[str, ...]) -> None:
        self.folder = folder
        self.class_names = class_names
        names: List[bytes] = []
        sizes: List[int] = []
        counts = []
        for class_name in class_names:
            files = sorted(image_files(folder / class_name))
            if not files:
                raise DataError(f"{folder / class_name}: a class without images; add some or remove the folder")
            names += [name for name, _ in files]
            sizes += [size for _, size in files]
            counts.append(len(files))
        self.names = np.array(names)
        self.labels = np.repeat(np.arange(len(class_names), dtype=np.int32), counts)
        self.fingerprint = hash_parts(
            [
                os.fsencode("\0".join(class_names)),
                b"\0".join(names),
                self.labels.astype("<i4").tobytes(),
                np.array(sizes, dtype="<i8").tobytes(),
            ]
        )

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Tuple[Image.Image, int]:
        """Return the image and its label. Raises DataError, naming path and class, where it cannot be read."""
        label = int(self.labels[index])
        class_name = self.class_names[label]
        path = self.folder / class_name / os.fsdecode(self.names[index].item())
        try:
            with open(path, "rb") as file:
                return decode(file), label
        except (DataError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise DataError(
                f"{path} (class {class_name}): cannot be used: {reason}; replace or remove the file"
            ) from error


def image_files(class_folder: Path) -> Iterator[Tuple[bytes, int]]:
    """Give name and size in bytes of each image file; names that start with a dot are passed over.

    Raises:
        DataError: something else is in the folder.
    """
    extensions = tuple(extension.encode() for extension in EXTENSIONS)
    with os.scandir(os.fsencode(class_folder)) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if not entry.name.lower().endswith(extensions) or not entry.is_file():
                raise DataError(
                    f"{os.fsdecode(entry.path)} (class {class_folder.name}): not an image file: expected a file "
                    f"(no folder, no link to nothing) whose name ends in {' '.join(EXTENSIONS)}; remove it"
                )
            yield entry.name, entry.stat().st_size


def find_classes(folder: Path) -> Tuple[str, ...]:
    """Return the names of the class folders in `folder`, sorted; names that start with a dot are passed over.

    Raises:
        DataError: something that is not a folder, or fewer than two classes.
    """
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    for name in names:
        if not (folder / name).is_dir():
            raise DataError(f"{folder / name}: expected class folders only; move the file into its class or remove it")
    if len(names) < 2:
        raise DataError(
            f"{folder}: {len(names)} classes ({' '.join(names) or 'it is empty'}); a classifier needs 2 or more folders"
        )
    return tuple(names)


def check_same_classes(train: Tuple[str, ...], evaluation: Tuple[str, ...], folder: Path) -> None:
    only = {"train": sorted(set(train) - set(evaluation)), "val": sorted(set(evaluation) - set(train))}
    for half, names in only.items():
        if names:
            raise DataError(
                f"{folder}: {len(names)} classes are in {half} alone, the first is {names[0]}; both need the same "
                "class folders"
            )


def build(config: DataConfig, seed: int) -> DataSets:
    """Return the images of the data folder; evaluation and, without min_crop_area, training use the central crop.

    Raises:
        DataError: a folder is missing, or holds something else than the layout says.
    """
    folder = data_folder(config.dir)
    halves = folder / "train", folder / "val"
    missing = [str(half) for half in halves if not half.is_dir()]
    if missing:
        raise missing_data("image_folder", config.dir, LAYOUT, f"not a folder, or not there: {', '.join(missing)}")
    try:
        train_classes, evaluation_classes = (find_classes(half) for half in halves)
        check_same_classes(train_classes, evaluation_classes, folder)
        train, evaluation = (FolderImages(half, train_classes) for half in halves)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}") from error
    image_size = config.image_size or IMAGE_SIZE
    augmentation = Augmentation(image_size, None, config.min_crop_area, config.horizontal_flip)
    return DataSets(
        train=TrainingImages(train, augmentation, seed),
        evaluation=EvaluationImages(evaluation, CentreCrop(image_size)),
        num_classes=len(train_classes),
        channels=3,
        image_size=image_size,
        mean=MEAN,
        std=STD,
        class_names=train_classes,
        fingerprint=hash_parts([train.fingerprint.encode(), evaluation.fingerprint.encode()]),
    )
