"""Images: (uint8 tensor (C, H, W), int label) by index. This room knows no batch and no device.

`data_sets = build_datasets(config.data, config.run.seed)`, then `data_sets.evaluation[index]` gives an image and its
label, and `data_sets.train[epoch, index]` an augmented one, which is a function of (seed, epoch, index) alone.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Tuple

from configs.errors import ConfigError
from configs.schema import DataConfig
from datasets.data_sets import DataSets, EvaluationImages, TrainingImages
from datasets.errors import DataError
from datasets.held_out import hold_out

__all__ = ["DataError", "DataSets", "EvaluationImages", "TrainingImages", "build_datasets"]

# data.name -> the module whose build(config, seed) makes it, imported when it is asked for
MODULES = {
    "fashion_mnist": "datasets.fashion_mnist",
    "fashion_scenes": "datasets.fashion_scenes",
    "cifar10": "datasets.cifar",
    "cifar100": "datasets.cifar",
    "photo_patches": "datasets.photo_patches",
    "image_folder": "datasets.image_folder",
    "image_shards": "datasets.shards.image_shards",
    "generated": "datasets.generated",
}
NATIVE_SIZES = {"fashion_mnist": 28, "fashion_scenes": 32, "cifar10": 32, "cifar100": 32, "photo_patches": 64}
ANY_SIZE = ("image_folder", "image_shards")
GENERATED_ONLY: Tuple[str, ...] = ("num_classes", "num_train_images", "num_eval_images")


def build_datasets(config: DataConfig, seed: int) -> DataSets:
    """Return the images that `config` names.

    Args:
        config: the data section of an experiment.
        seed: in [0, 2^64); keys the augmentation of training images.

    Raises:
        ConfigError: an option that this data set has no use for.
        DataError: the images are missing, damaged or not laid out as expected.
    """
    check_options(config)
    data_sets: DataSets = importlib.import_module(MODULES[config.name]).build(config, seed)
    if config.crop_padding is not None and config.crop_padding >= data_sets.image_size:
        raise ConfigError(
            f"data.crop_padding {config.crop_padding} is not below the image size {data_sets.image_size}: some crops "
            "would show no pixel of the image; lower it"
        )
    if (config.auto_augment, config.rand_augment_magnitude, config.random_erasing) != (None, None, None):
        # as late as the data set: it imports torchvision
        from datasets.images.random_operations import RandomlyOperated, random_operations

        plain = data_sets.train
        augmentation = RandomlyOperated(plain.augmentation, random_operations(config, data_sets.mean))
        train = TrainingImages(plain.source, augmentation, plain.seed, plain.max_corrupt, plain.parts)
        data_sets = replace(data_sets, train=train)
    return data_sets if config.validation_images is None else hold_out(data_sets, config.validation_images)


def check_options(config: DataConfig) -> None:
    """Raise ConfigError for options that have no effect on, or no meaning for, the data set."""
    unused = ("dir",) if config.name == "generated" else GENERATED_ONLY
    unused += () if config.name == "image_shards" else ("cache_dir", "shuffle_shards")
    unused += () if config.name in ANY_SIZE else ("fingerprint", "max_corrupt", "max_megapixels")
    for option in unused:
        value = getattr(config, option)
        if value is not None:
            raise ConfigError(f"data.{option} {value!r} has no effect with data.name {config.name}; remove it")
    if config.name in ANY_SIZE and config.crop_padding is not None:
        raise ConfigError(
            f"data.crop_padding {config.crop_padding} needs images of one size, which {config.name} does not "
            "promise; use data.min_crop_area"
        )
    native_size = NATIVE_SIZES.get(config.name)
    if native_size is not None and config.image_size not in (None, native_size):
        raise ConfigError(
            f"data.image_size {config.image_size}: the images of {config.name} have {native_size} pixels per side and "
            "are not resized; remove it"
        )
