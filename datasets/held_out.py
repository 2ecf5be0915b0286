"""Part of the training images, held out to choose by: a checkpoint, a setting. The evaluation images choose nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Tuple

import numpy as np

from configs.errors import ConfigError
from datasets.data_sets import DataSets, EvaluationImages, ImageSource, Parts, StoredImage, TrainingImages
from datasets.keyed_random import KeyedRandoms

CHOICE = 0x76616C69646174  # the key of the choice: every seed trains and validates on the same images


class SelectedImages:
    """Some images of a source, in its order.

    Args:
        source: all images.
        indices: (n,) those that are selected, ascending.
    """

    def __init__(self, source: ImageSource, indices: np.ndarray) -> None:
        self.source = source
        self.indices = indices

    @property
    def must_copy(self) -> bool:
        return self.source.must_copy

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> Tuple[StoredImage, int]:
        return self.source.load(int(self.indices[index]))


def choose_held_out(labels: np.ndarray, count: int) -> np.ndarray:
    """Return which images are held out: a function of the labels and `count` alone.

    Class c of n_c images among n gives count n_c / n of them, rounded down; the classes with the largest remainders
    (the first ones, where equal) give one more. Within a class the images come in random order.

    Args:
        labels: (n,) of all training images.
        count: images to hold out.

    Shape: -> (n,) bool.

    Raises:
        ConfigError: a class would have no image left to train on.
    """
    sizes = np.bincount(labels)
    quotas, remainders = np.divmod(sizes * count, len(labels))
    quotas[np.argsort(-remainders, kind="stable")[: count - quotas.sum()]] += 1
    emptied = np.flatnonzero((quotas >= sizes) & (sizes > 0))
    if len(emptied):
        raise ConfigError(
            f"data.validation_images {count} of {len(labels)} training images would hold out all {sizes[emptied[0]]} "
            f"of class {emptied[0]}; lower it"
        )
    order = np.lexsort((KeyedRandoms((CHOICE,), np.arange(len(labels))).bits(), labels))
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of each place of `order` in its class
    is_held_out = np.zeros(len(labels), dtype=bool)
    is_held_out[order] = rank < quotas[labels[order]]
    return is_held_out


def hold_out(data: DataSets, count: int) -> DataSets:
    """Return the same data with `count` of its training images as `validation`, shown as the evaluation images are.

    Raises:
        ConfigError: a class would have no image left to train on.
    """
    train = data.train
    is_held_out = choose_held_out(train.source.labels, count)
    validation, rest = (SelectedImages(train.source, np.flatnonzero(chosen)) for chosen in (is_held_out, ~is_held_out))
    parts = None if train.parts is None else _parts_without(train.parts, is_held_out)
    return replace(
        data,
        train=TrainingImages(rest, train.augmentation, train.seed, train.max_corrupt, parts),
        validation=EvaluationImages(validation, data.evaluation.transform),
    )


def _parts_without(parts: Parts, is_held_out: np.ndarray) -> Parts:
    part_of = np.repeat(np.arange(len(parts.sizes)), parts.sizes)
    sizes = np.bincount(part_of[~is_held_out], minlength=len(parts.sizes))
    return Parts(tuple(size for size in sizes.tolist() if size), parts.together)
