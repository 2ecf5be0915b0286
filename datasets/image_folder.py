"""A folder of image files in the layout of ImageNet: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Tuple

import numpy as np
from typing_extensions import Protocol

from configs.bounded_file import open_regular
from configs.schema import DataConfig
from datasets.class_names import check_class_names
from datasets.data_sets import DataSets, EvaluationImages, ImageSource, Parts, TrainingImages, hash_listing, hash_parts
from datasets.errors import DataError
from datasets.folder import data_folder, missing_data
from datasets.images.decode import EXTENSIONS, MAX_BYTES, MAX_PIXELS, pixel_limit
from datasets.images.encoded_image import EncodedImage, decoder_versions, say_decoder, unusable
from datasets.images.transforms import Augmentation, CentreCrop

IMAGE_SIZE = 224
FILES_AT_ONCE = 16  # disks and distant places take their time to answer each
HALVES = ("train", "val")
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
        max_pixels: images of more are refused.

    Raises:
        DataError: a class without images, or anything in a class folder that is not an image file by its name.
    """

    must_copy = False

    def __init__(self, folder: Path, class_names: Tuple[str, ...], max_pixels: int = MAX_PIXELS) -> None:
        self.folder = folder
        self.max_pixels = max_pixels
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
        self.fingerprint = hash_listing(class_names, names, self.labels, sizes)

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Tuple[EncodedImage, int]:
        """Return the image and its label.

        Raises:
            DataError: it cannot be read; the message names path and class.
        """
        return EncodedImage(self.content(index), self.name(index), self.max_pixels), int(self.labels[index])

    def content(self, index: int) -> bytes:
        """Return the bytes of the file.

        Raises:
            DataError: as `load` does.
        """
        try:
            return read_image_file(self.path(index))
        except OSError as error:
            raise unusable(self.name(index), error.strerror or str(error)) from error

    def path(self, index: int) -> Path:
        return self.folder / self.class_names[self.labels[index]] / os.fsdecode(self.names[index].item())

    def name(self, index: int) -> str:
        """Return what errors call the image."""
        return f"{self.path(index)} (class {self.class_names[self.labels[index]]})"


def read_image_file(path: Path) -> bytes:
    """Return the content of a file.

    Raises:
        OSError: it cannot be read, or is too large for an image.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise OSError(errno.EFBIG, f"it has {size} bytes, over the limit of {MAX_BYTES} for an image")
        return file.read(size)


def image_files(class_folder: Path) -> Iterator[Tuple[bytes, int]]:
    """Give name and size in bytes of each image file; names that start with a dot are skipped.

    Raises:
        DataError: something else is in the folder.
    """
    with os.scandir(os.fsencode(class_folder)) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            if not has_image_name(entry.name) or not entry.is_file():
                raise DataError(
                    f"{os.fsdecode(entry.path)} (class {class_folder.name}): not an image file: expected a file "
                    f"(no folder, no link to nothing) whose name ends in {' '.join(EXTENSIONS)}; remove it"
                )
            yield entry.name, entry.stat().st_size


def has_image_name(name: bytes) -> bool:
    return os.path.splitext(os.fsdecode(name))[1].lower() in EXTENSIONS


def find_classes(folder: Path) -> Tuple[str, ...]:
    """Return the names of the class folders in `folder`, sorted; names that start with a dot are skipped.

    Raises:
        DataError: something that is not a folder, fewer than two classes, or names that cannot be told apart.
    """
    names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    for name in names:
        if not (folder / name).is_dir():
            raise DataError(f"{folder / name}: expected class folders only; move the file into its class or remove it")
    check_class_names(str(folder), names)
    if len(names) < 2:
        raise DataError(
            f"{folder}: {len(names)} classes ({' '.join(names) or 'it is empty'}); a classifier needs 2 or more folders"
        )
    return tuple(names)


def check_same_classes(train: Tuple[str, ...], evaluation: Tuple[str, ...], folder: Path) -> None:
    check_class_names(str(folder), sorted({*train, *evaluation}))
    only = {"train": sorted(set(train) - set(evaluation)), "val": sorted(set(evaluation) - set(train))}
    for half, names in only.items():
        if names:
            raise DataError(
                f"{folder}: {len(names)} classes are in {half} alone, the first is {names[0]}; both need the same "
                "class folders"
            )


def open_folder(folder: Path, max_pixels: int = MAX_PIXELS) -> Dict[str, FolderImages]:
    """Return the halves "train" and "val" of a folder whose parts are there.

    Raises:
        DataError: it holds something else than the layout says, or cannot be read.
    """
    try:
        classes = {half: find_classes(folder / half) for half in HALVES}
        check_same_classes(classes["train"], classes["val"], folder)
        return {half: FolderImages(folder / half, classes[half], max_pixels) for half in HALVES}
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error}; expected there: {LAYOUT}") from error


def build(config: DataConfig, seed: int) -> DataSets:
    """Return the images of the data folder; evaluation and, without min_crop_area, training use the central crop.

    Raises:
        DataError: a folder is missing, or holds something else than the layout says.
    """
    say_decoder()
    folder = data_folder(config.dir)
    missing = [str(folder / half) for half in HALVES if not (folder / half).is_dir()]
    if missing:
        raise missing_data("image_folder", config.dir, LAYOUT, f"not a folder, or not there: {', '.join(missing)}")
    halves = open_folder(folder, pixel_limit(config))
    return encoded_data_sets(config, seed, halves["train"], halves["val"])


class EncodedSource(ImageSource, Protocol):
    """A half of a data set of encoded images."""

    class_names: Tuple[str, ...]
    fingerprint: str

    def content(self, index: int) -> bytes: ...


def contents_fingerprint(source: EncodedSource) -> str:
    """Return digits that change with any byte of any image. It reads all files.

    Raises:
        DataError: a file cannot be read.
    """
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        digests = pool.map(lambda index: hash_parts([source.content(index)]), range(len(source)))
        return hash_parts(digest.encode() for digest in digests)


def encoded_data_sets(
    config: DataConfig, seed: int, train: EncodedSource, evaluation: EncodedSource, parts: Optional[Parts] = None
) -> DataSets:
    """Return the DataSets of encoded images of any size; `parts` of those to train on."""
    image_size = config.image_size or IMAGE_SIZE
    prints = [source.fingerprint for source in (train, evaluation)]
    if config.fingerprint == "contents":
        prints += [contents_fingerprint(source) for source in (train, evaluation)]
    augmentation = Augmentation(image_size, None, config.min_crop_area, config.horizontal_flip, same_size=False)
    return DataSets(
        train=TrainingImages(train, augmentation, seed, config.max_corrupt or 0, parts),
        evaluation=EvaluationImages(evaluation, CentreCrop(image_size)),
        num_classes=len(train.class_names),
        channels=3,
        image_size=image_size,
        mean=MEAN,
        std=STD,
        class_names=train.class_names,
        fingerprint=hash_parts([each.encode() for each in prints]),
        decoder=decoder_versions(),
    )
