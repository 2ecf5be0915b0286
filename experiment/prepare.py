"""An experiment made ready: configuration -> data -> network -> batch plan, settled on a device."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Tuple

from backends import Device, Workload
from configs import BatchPlan, Config, ConfigError
from configs.schema import DataConfig
from datasets import DataError, DataSets, build_datasets
from experiment.calibration import start_from_batch_norm
from experiment.network import build_classifier, build_network, cost_of
from experiment.power_log import check_power_is_measurable
from experiment.run import PlannedRun
from experiment.starting_weights import place_weights
from experiment.weights_file import read_weights
from training.mixing import PARTNERS

# data.name -> classes, images to train on and to evaluate on, of what a dry run plans for where the files are missing
_IMAGENET, _CIFAR = (1000, 1281167, 50000), (50000, 10000)
STAND_INS = {"image_folder": _IMAGENET, "image_shards": _IMAGENET, "cifar10": (10, *_CIFAR), "cifar100": (100, *_CIFAR)}
LOGGER = logging.getLogger(__name__)


def prepare(
    name: str, config: Config, device: Device, *, dry_run: bool = False, weights_follow: bool = False
) -> PlannedRun:
    """Return data, network and batch plan, settled on the device. `start()` of the result places the network there.

    Args:
        name: of the run.
        config: the experiment.
        device: this process's.
        dry_run: images (see `stand_in`) and model.pretrained need not be there.
        weights_follow: those of a checkpoint will be loaded, so model.pretrained is not read.

    Raises:
        ConfigError, DataError, DeviceError, CheckpointError: what does not fit, with the rule and a way out.
    """
    config, data = load_data(config, dry_run)
    factory, network = build_network(config, data)
    device.choose_operations(network)
    cost = cost_of(network, factory, config, data)
    placement = device.settle(
        Workload(
            network=network,
            uses_batch_norm=factory.uses_batch_norm,
            image_size=data.image_size,
            in_channels=data.channels,
            training_images=len(data.train),
            saved_bytes_per_image=cost.saved_bytes_per_image,
            batch=config.batch,
            optimizer=config.optimizer,
        )
    )
    check_images(config, data, placement.plan)
    check_learning(config, placement.plan)
    pretrained = config.model.pretrained
    if pretrained is not None and dry_run and not Path(pretrained).exists():
        LOGGER.info("model.pretrained %s does not exist. Planned with random weights instead", pretrained)
    elif pretrained is not None and not weights_follow:
        saved, is_reset = read_weights(pretrained), config.model.reset_classifier
        if config.model.calibration_images is None:
            place_weights(network, factory, saved, data.class_names, reset_classifier=is_reset)
        else:
            start_from_batch_norm(network, factory, saved, config, data)
    classifier = build_classifier(config, data, network)
    run = PlannedRun(name, config, device, placement, data, factory, classifier, cost)
    if config.run.power_every_epochs is not None:
        check_power_is_measurable(run)
    return run


def load_data(config: Config, dry_run: bool) -> Tuple[Config, DataSets]:
    """Return the images, and the configuration that they are of: in a dry run without files another (see `stand_in`).

    A data.dir that is given must be right.
    """
    try:
        return config, build_datasets(config.data, config.run.seed)
    except DataError as error:
        if not dry_run or config.data.dir is not None or config.data.name not in STAND_INS:
            raise
        LOGGER.info("%s. Planned with synthetic images instead, as many as %s has", error, _origin(config.data))
    config = config.model_copy(update={"data": stand_in(config.data)})
    return config, build_datasets(config.data, config.run.seed)


def stand_in(config: DataConfig) -> DataConfig:
    """synthetic images with the numbers of CIFAR or, for a folder or shards, of ImageNet, to plan without data."""
    classes, training_images, evaluation_images = STAND_INS[config.name]
    return DataConfig(
        name="generated",
        image_size=config.image_size or (32 if config.name.startswith("cifar") else None),
        num_classes=classes,
        num_train_images=training_images,
        num_eval_images=evaluation_images,
        validation_images=config.validation_images,
    )


def _origin(config: DataConfig) -> str:
    return config.name if config.name.startswith("cifar") else "ImageNet"


def check_images(config: Config, data: DataSets, plan: BatchPlan) -> None:
    """Refuse a global batch of more than all training images.

    Raises:
        ConfigError: as said.
    """
    if plan.global_batch_size > len(data.train):
        raise ConfigError(
            f"batch.global_batch_size {plan.global_batch_size} is more than the {len(data.train)} training images of "
            f"{config.data.name}; lower it to {len(data.train)} or less"
        )


def check_learning(config: Config, plan: BatchPlan) -> None:
    """Refuse sections on learning that do not fit the batch plan.

    Raises:
        ConfigError: as said.
    """
    if config.regularization.is_mixing and plan.global_batch_size <= PARTNERS:
        raise ConfigError(
            f"regularization.mixup_alpha, cutmix_nominal or cutmix_alpha mix an image with {PARTNERS} others of its "
            f"global batch, and batch.global_batch_size {plan.global_batch_size} is less than 1 + {PARTNERS}; "
            f"use {PARTNERS + 1} or more, or remove them"
        )
    if config.averaging.every == "step" and plan.device_iterations > 1:
        raise ConfigError(
            f"averaging.every step needs the weights after each update, and one call of the device makes "
            f"{plan.device_iterations} (device_iterations); set that to 1, or averaging.every to epoch"
        )
