"""What every data set gives: images by index, and the numbers that a training needs about them."""

from __future__ import annotations

import hashlib
import logging
import operator
import os
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from typing_extensions import Protocol

from datasets.errors import DataError, StoreError
from datasets.images.encoded_image import EncodedImage
from datasets.keyed_random import KeyedRandom

StoredImage = Union[np.ndarray, EncodedImage]

REPLACEMENT = 1  # fourth word of the key that chooses what replaces an unreadable image


class ImageSource(Protocol):
    """Images as they are stored: (C, H, W) uint8 arrays, or encoded images of any size."""

    @property
    def must_copy(self) -> bool:
        """Whether files have to be copied to this machine before all images can be read: a first one may wait long."""

    @property
    def labels(self) -> np.ndarray:
        """(len,) whole numbers: the labels of all images, without reading one."""
        ...

    def __len__(self) -> int: ...

    def load(self, index: int) -> Tuple[StoredImage, int]:
        """Return image `index`, 0 <= index < len, and its label."""
        ...


def checked_index(index: int, count: int) -> int:
    """Return `index` as an int, or raise IndexError outside [0, count), negative indices included."""
    index = operator.index(index)
    if not 0 <= index < count:
        raise IndexError(f"image {index} of {count}; the first is 0")
    return index


class EvaluationImages:
    """The images to evaluate on, the same at each visit.

    `images[index]` gives (uint8 tensor (C, H, W), label); the tensor is the caller's own.

    Args:
        source: the stored images.
        transform: stored image -> tensor.
    """

    def __init__(self, source: ImageSource, transform: Callable[..., torch.Tensor]) -> None:
        self.source = source
        self.transform = transform

    @property
    def must_copy(self) -> bool:
        return self.source.must_copy

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, int]:
        image, label = self.source.load(checked_index(index, len(self)))
        return self.transform(image), label


def shared_flags(count: int) -> torch.Tensor:
    """Return zeros that loading processes see and set.

    Raises:
        DataError: shared memory has no room for them.
    """
    try:
        return torch.zeros(count, dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        raise DataError(
            f"data.max_corrupt counts in shared memory, which has no room for {count} bytes ({error}); enlarge "
            "/dev/shm (docker run --shm-size) or remove data.max_corrupt"
        ) from error


@dataclass(frozen=True)
class Parts:
    """Consecutive parts of a data set, files that hold many images, which are read a few at a time.

    Attributes:
        sizes: images of each part.
        together: parts whose images are shuffled among each other.
    """

    sizes: Tuple[int, ...]
    together: int


class TrainingImages:
    """The images to train on, augmented differently in each epoch.

    `images[epoch, index]` gives (uint8 tensor (C, H, W), label). It is a function of (seed, epoch, index): the loading
    process, the order, and torch's, numpy's and Python's random states neither influence it nor are touched by it.

    An image that cannot be read is replaced by another one, whose number is a function of (seed, epoch, index) too,
    as long as no more than max_corrupt different ones were met by this process and its loading processes. Where the
    place that holds the images fails, that is an error always: the images of a run do not depend on a network.

    Args:
        source: the stored images.
        augmentation: (stored image, its random numbers) -> tensor.
        seed: a whole number in [0, 2^64).
        max_corrupt: 0: the first unreadable image is an error.
        parts: for an order that reads a few files at a time; None for one over all images.

    Attributes:
        corrupt: the number of unreadable images met so far.
    """

    def __init__(
        self,
        source: ImageSource,
        augmentation: Callable[..., torch.Tensor],
        seed: int,
        max_corrupt: int = 0,
        parts: Optional[Parts] = None,
    ) -> None:
        self.source = source
        self.augmentation = augmentation
        self.seed = seed
        self.max_corrupt = max_corrupt
        self.parts = parts
        # one byte an image, seen by all loading processes
        self._is_corrupt = shared_flags(len(source) if max_corrupt else 0)
        KeyedRandom(seed)  # an unusable seed is refused here, not in a loading process

    @property
    def must_copy(self) -> bool:
        return self.source.must_copy

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: Tuple[int, int]) -> Tuple[torch.Tensor, int]:
        if not isinstance(key, tuple) or len(key) != 2:
            raise TypeError(f"training images are indexed by (epoch, index), got {key!r}")
        epoch, index = operator.index(key[0]), checked_index(key[1], len(self))
        others = KeyedRandom(self.seed, epoch, index, REPLACEMENT)
        while True:
            try:
                image, label = self.source.load(index)
                return self.augmentation(image, KeyedRandom(self.seed, epoch, index)), label
            except StoreError:
                raise
            except DataError as error:
                self._count_corrupt(index, error)
            index = others.integer(len(self))

    def _count_corrupt(self, index: int, error: DataError) -> None:
        """Raise `error` unless the image may be replaced; say it the first time."""
        if self.max_corrupt == 0:
            raise error
        if self._is_corrupt[index] == 0:
            self._is_corrupt[index] = 1
            logging.getLogger(__name__).warning("%s; another image takes its place", error)
        if self.corrupt == len(self):
            raise DataError(f"all {len(self)} training images are unreadable; the last: {error}") from error
        if self.corrupt > self.max_corrupt:
            raise DataError(
                f"{self.corrupt} unreadable training images, more than data.max_corrupt {self.max_corrupt}; "
                f"the last: {error}"
            ) from error

    @property
    def corrupt(self) -> int:
        return int(self._is_corrupt.sum())


class _Unaugmented:
    """A transform of evaluation in the place of an augmentation; a class, since loading processes receive it."""

    def __init__(self, transform: Callable[..., torch.Tensor]) -> None:
        self.transform = transform

    def __call__(self, image: StoredImage, random: KeyedRandom) -> torch.Tensor:
        return self.transform(image)


class PlainTrainingImages:
    """Images to train on, shown as those to evaluate on are: the same at each visit.

    `images[index]` gives (uint8 tensor (C, H, W), label). They are evenly spaced over all training images, which may be
    in the order of their classes. Unreadable images are replaced as in training.

    Args:
        train: the images to train on.
        transform: stored image -> tensor.
        count: how many; all, where there are fewer.
    """

    def __init__(self, train: TrainingImages, transform: Callable[..., torch.Tensor], count: int) -> None:
        self._all = TrainingImages(train.source, _Unaugmented(transform), train.seed, train.max_corrupt)
        self._count = min(count, len(train))

    @property
    def must_copy(self) -> bool:
        return self._all.must_copy

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, int]:
        return self._all[0, checked_index(index, self._count) * len(self._all) // self._count]


@dataclass(frozen=True)
class DataSets:
    """The two halves of a data set, and a part of the first that is held out.

    Attributes:
        train: indexed by (epoch, index).
        evaluation: indexed by index.
        num_classes: labels are in [0, num_classes).
        channels: 1 or 3.
        image_size: pixels per side of the square images that both halves give.
        mean: per channel, of pixels scaled to [0, 1].
        std: the same for the standard deviation.
        class_names: one per label.
        fingerprint: changes with the stored images (their number, names, labels, sizes; pixels too where they are all
            in memory, and contents where data.fingerprint says so), not with the folder that holds them or how they
            are augmented: a run that resumes compares it.
        validation: indexed by index; images of the training half that are not among `train`, to choose by. None: none.
        decoder: what turns the files of images into pixels while training, for the same purpose; "" for nothing.
        changed: how the files of images were changed when they were packed, for the same purpose; "" for not at all.
    """

    train: TrainingImages
    evaluation: EvaluationImages
    num_classes: int
    channels: int
    image_size: int
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    class_names: Tuple[str, ...]
    fingerprint: str
    decoder: str = ""
    changed: str = ""
    validation: Optional[EvaluationImages] = None

    def plain_training_images(self, count: int) -> PlainTrainingImages:
        """`count` of the images to train on, evenly spaced, or all if there are fewer; not augmented."""
        return PlainTrainingImages(self.train, self.evaluation.transform, count)


def hash_listing(class_names: Sequence[str], names: Sequence[bytes], labels: np.ndarray, sizes: Any) -> str:
    """Return what hash_parts gives for encoded images: their classes, and name, label and size in bytes of each."""
    return hash_parts(
        [
            os.fsencode("\0".join(class_names)),
            b"\0".join(names),
            labels.astype("<i4").tobytes(),
            np.asarray(sizes, dtype="<i8").tobytes(),
        ]
    )


def hash_parts(parts: Iterable[Union[bytes, memoryview]]) -> str:
    """Return 32 hexadecimal digits that tell `parts` from any other sequence of bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        # the length in front keeps ("ab", "c") and ("a", "bc") apart
        digest.update(memoryview(part).nbytes.to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
