"""Synthetic images of any size and number of classes, from an index alone: for trials, tests and measuring speed.

Image i has class c = i modulo num_classes and shows

    x[k, h, w] = 127.5 + A * sum_r colour[c, r, k] * cos(2 pi f[c, r] . ((h, w) / size + shift_i) + phase[c, r]) + noise

with three waves r per class (frequency f of 1 to 4 periods per image in any direction, phase, unit colour vector), a
shift of up to an eighth of the image in each direction, and uniform noise that makes up 73 % of the variance. A
single pixel says little about the class; how neighbours vary together says everything. The images do not
depend on a run's seed.
"""

from __future__ import annotations

import math
from typing import Tuple

import numpy as np

from configs.schema import DataConfig
from datasets.data_sets import DataSets, EvaluationImages, TrainingImages, hash_parts
from datasets.images.transforms import Augmentation, to_tensor
from datasets.keyed_random import KeyedRandom

VERSION = 1  # of the images; part of the fingerprint
IMAGE_SIZE = 32
NUM_CLASSES = 10
NUM_TRAIN_IMAGES = 8192
NUM_EVAL_IMAGES = 2048

CHANNELS = 3
WAVES = 3
# 3 waves of this amplitude and the noise together stay within 0..255: 3 * 24 + 48 <= 127.5
AMPLITUDE = 24.0
NOISE = 48.0
FREQUENCIES = (1.0, 4.0)
LARGEST_SHIFT = 1 / 8
# Unit colours: a wave adds AMPLITUDE^2 / 2 of variance, spread over the channels; a uniform byte has (256^2 - 1) / 12.
NOISE_VARIANCE = (256**2 - 1) / 12 * (NOISE / 127.5) ** 2
MEAN = (0.5,) * CHANNELS
STD = (math.sqrt(AMPLITUDE**2 / 2 * WAVES / CHANNELS + NOISE_VARIANCE) / 255,) * CHANNELS

TRAIN, EVALUATION, CLASS = 0, 1, 2  # first words of random keys


class GeneratedImages:
    """The images of one half.

    Args:
        half: TRAIN or EVALUATION.
        count: images.
        num_classes: classes.
        image_size: pixels per side.
    """

    must_copy = False

    def __init__(self, half: int, count: int, num_classes: int, image_size: int) -> None:
        self.half = half
        self.count = count
        self.image_size = image_size
        self.num_classes = num_classes
        self.frequencies = np.empty((num_classes, WAVES, 2))
        self.phases = np.empty((num_classes, WAVES))
        self.colours = np.empty((num_classes, CHANNELS, WAVES))
        for label in range(num_classes):
            self.choose_waves(label)

    def choose_waves(self, label: int) -> None:
        random = KeyedRandom(CLASS, label)
        for wave in range(WAVES):
            frequency, direction = random.uniform(*FREQUENCIES), random.uniform(0, math.pi)
            self.frequencies[label, wave] = frequency * math.sin(direction), frequency * math.cos(direction)
            self.phases[label, wave] = random.uniform(0, 2 * math.pi)
            colour = np.array([random.uniform(-1, 1) for _ in range(CHANNELS)])
            self.colours[label, :, wave] = colour / np.linalg.norm(colour)

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self.count) % self.num_classes

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> Tuple[np.ndarray, int]:
        label = index % self.num_classes
        random = KeyedRandom(self.half, index)
        shift = np.array([random.uniform(-LARGEST_SHIFT, LARGEST_SHIFT) for _ in range(2)])
        size = self.image_size
        places = np.arange(size) / size
        frequencies = 2 * math.pi * self.frequencies[label]
        # cos(a + b) = cos a cos b - sin a sin b makes the sum over waves one small matrix product
        vertical = np.multiply.outer(frequencies[:, 0], places)
        offsets = frequencies @ shift + self.phases[label]
        horizontal = np.multiply.outer(frequencies[:, 1], places) + offsets[:, np.newaxis]
        colours = AMPLITUDE * self.colours[label][:, :, np.newaxis]
        rows = np.concatenate(
            (colours * np.cos(vertical), -colours * np.sin(vertical)), axis=1
        )  # (channel, 2 waves, height)
        columns = np.concatenate((np.cos(horizontal), np.sin(horizontal)))
        image = (rows.transpose(0, 2, 1).reshape(CHANNELS * size, 2 * WAVES) @ columns).reshape(CHANNELS, size, size)
        # a byte b is noise of NOISE * (b - 127.5) / 127.5; + 0.5 rounds
        image += random.bytes(image.size).reshape(image.shape) * (NOISE / 127.5) + (128 - NOISE)
        return image.astype(np.uint8), label


def build(config: DataConfig, seed: int) -> DataSets:
    """Return synthetic images: by default ten classes, 32 pixels, 8192 images to train on and 2048 to evaluate on."""
    num_classes = config.num_classes or NUM_CLASSES
    image_size = config.image_size or IMAGE_SIZE
    num_train_images = config.num_train_images or NUM_TRAIN_IMAGES
    num_eval_images = config.num_eval_images or NUM_EVAL_IMAGES
    augmentation = Augmentation(image_size, config.crop_padding, config.min_crop_area, config.horizontal_flip)
    contents = ("generated", VERSION, num_classes, image_size, num_train_images, num_eval_images)
    return DataSets(
        train=TrainingImages(GeneratedImages(TRAIN, num_train_images, num_classes, image_size), augmentation, seed),
        evaluation=EvaluationImages(GeneratedImages(EVALUATION, num_eval_images, num_classes, image_size), to_tensor),
        num_classes=num_classes,
        channels=CHANNELS,
        image_size=image_size,
        mean=MEAN,
        std=STD,
        class_names=tuple(f"pattern {label}" for label in range(num_classes)),
        fingerprint=hash_parts([repr(contents).encode()]),
    )
