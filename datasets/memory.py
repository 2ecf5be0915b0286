"""Data sets that fit in memory: all images of one size in one array."""

from __future__ import annotations

from typing import List, Tuple, Union

import numpy as np

from configs.schema import DataConfig
from datasets.data_sets import DataSets, EvaluationImages, TrainingImages, hash_parts
from datasets.errors import DataError
from datasets.images.transforms import Augmentation, to_tensor


class ImagesInMemory:
    """Images of one array.

    Args:
        images: (N, C, H, W) uint8, contiguous.
        labels: (N,) whole numbers.

    Raises:
        DataError: no images, or not one label for each.
    """

    must_copy = False

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        if len(images) == 0 or len(images) != len(labels):
            raise DataError(
                f"{len(images)} images and {len(labels)} labels; expected one label for each of 1 or more images"
            )
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Tuple[np.ndarray, int]:
        return self.images[index], int(self.labels[index])


def data_sets_in_memory(
    config: DataConfig,
    seed: int,
    train: ImagesInMemory,
    evaluation: ImagesInMemory,
    *,
    mean: Tuple[float, ...],
    std: Tuple[float, ...],
    class_names: Tuple[str, ...],
) -> DataSets:
    """Return the DataSets of two arrays of square images."""
    channels, image_size = train.images.shape[1:3]
    augmentation = Augmentation(image_size, config.crop_padding, config.min_crop_area, config.horizontal_flip)
    parts: List[Union[bytes, memoryview]] = [config.name.encode()]
    for source in (train, evaluation):
        parts += [repr(source.images.shape).encode(), source.images.data, source.labels.astype("<i8").tobytes()]
    return DataSets(
        train=TrainingImages(train, augmentation, seed),
        evaluation=EvaluationImages(evaluation, to_tensor),
        num_classes=len(class_names),
        channels=channels,
        image_size=image_size,
        mean=mean,
        std=std,
        class_names=class_names,
        fingerprint=hash_parts(parts),
    )
