"""An experiment made ready: configuration -> data -> network -> batch plan, placed on a device.

train.py, evaluate.py and analyze.py begin here, so that all of them build the same network from the same file.
"""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import List, Tuple

import torch
from torch import nn

from backends import Device, Workload
from configs import BatchPlan, Config, ConfigError
from configs.schema import DataConfig, ModelConfig
from datasets import DataError, DataSets, build_datasets
from experiment.power_log import check_power_is_measurable
from experiment.run import PlannedRun
from experiment.starting_weights import place_weights
from experiment.weights_file import read_weights
from models import ImageClassifier, build_model
from models.cost import Cost, measure_cost
from normact import NormActFactory, rebuild_activations
from training.classifier import Classifier
from training.draws import StepDraws
from training.freezing import freeze_all_but
from training.mixing import PARTNERS, Mixing

OWN_NONLINEARITY = ("frn", "evonorm_s0")
IMAGENET_FORMATS = ("image_folder", "image_shards")
LOGGER = logging.getLogger(__name__)


def prepare(
    name: str, config: Config, device: Device, *, dry_run: bool = False, weights_follow: bool = False
) -> PlannedRun:
    """Data, network and batch plan, settled on the device. `start()` of the result places the network there.

    Args:
        dry_run: ImageNet (see `stand_in`) and model.pretrained need not be there.
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
        place_weights(network, factory, saved, data.class_names, reset_classifier=is_reset)
    classifier = build_classifier(config, data, network)
    run = PlannedRun(name, config, device, placement, data, factory, classifier, cost)
    if config.run.power_every_epochs is not None:
        check_power_is_measurable(run)
    return run


def load_data(config: Config, dry_run: bool) -> Tuple[Config, DataSets]:
    """The images, and the configuration that they are of: another in a dry run without ImageNet (see `stand_in`)."""
    try:
        return config, build_datasets(config.data, config.run.seed)
    except DataError as error:
        if not dry_run or config.data.name not in IMAGENET_FORMATS:
            raise
        LOGGER.info("%s. Planned with synthetic images instead, with ImageNet's numbers of images and classes", error)
    config = config.model_copy(update={"data": stand_in(config.data)})
    return config, build_datasets(config.data, config.run.seed)


def stand_in(config: DataConfig) -> DataConfig:
    """Made images with ImageNet's numbers, to plan a run where the real ones are not."""
    return DataConfig(
        name="generated",
        image_size=config.image_size,
        num_classes=1000,
        num_train_images=1281167,
        num_eval_images=50000,
    )


def build_network(config: Config, data: DataSets) -> Tuple[NormActFactory, ImageClassifier]:
    """The network of sections `model` and `norm` for the images of `data`, its weights drawn from the run's seed.

    Raises:
        ConfigError: names and sizes that do not fit together.
    """
    uses_batch_norm = config.norm.name.split("+")[0] == "batch"
    if config.model.activation is not None and config.norm.name in OWN_NONLINEARITY:
        raise ConfigError(
            f"model.activation {config.model.activation} has no effect after norm {config.norm.name}, which brings its "
            "own nonlinearity; remove it"
        )
    # What the file leaves out is left to the layer's defaults.
    given = {key: value for key, value in config.norm.model_dump(exclude={"name"}).items() if value is not None}
    try:
        factory = NormActFactory(
            norm=config.norm.name, norm_batch_size=config.batch.norm_batch_size if uses_batch_norm else None, **given
        )
        torch.manual_seed(config.run.seed)  # here and not earlier: even imports draw from torch's generator
        network = build_model(
            config.model.name,
            num_classes=data.num_classes,
            norm_act=factory,
            in_channels=data.channels,
            width=config.model.width,
            activation=config.model.activation,
            drop_rate=config.regularization.drop_rate,
            drop_path_rate=config.regularization.drop_path_rate,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return factory, network


def cost_of(network: ImageClassifier, factory: NormActFactory, config: Config, data: DataSets) -> Cost:
    """What the network computes and keeps for one image.

    Raises:
        ConfigError: images that are too small for the network.
    """
    # Batch norm has no fused kernel, so what it saves can be counted without computing it on many images.
    measured = copy.deepcopy(network).to("meta") if factory.uses_batch_norm else network
    try:
        return measure_cost(measured, data.image_size, in_channels=data.channels, images=config.batch.norm_batch_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def build_classifier(config: Config, data: DataSets, network: ImageClassifier) -> Classifier:
    """The network with all that section `regularization`, norm.recompute and model.train_only put around it."""
    if config.norm.recompute:
        rebuild_activations(network)
    draws = StepDraws(Mixing.of(config.regularization, data.image_size), network.drops())
    frozen = freeze(config.model, network)
    return Classifier(network, data.mean, data.std, config.regularization.label_smoothing, draws, frozen)


def freeze(config: ModelConfig, network: ImageClassifier) -> List[nn.Module]:
    """Freezes all but model.train_only, and returns the frozen modules.

    Raises:
        ConfigError: a name that is no module.
    """
    if config.train_only is None:
        return []
    try:
        frozen = freeze_all_but(network, config.train_only)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    idle = [drop for drop in network.drops() if any(drop is module for module in frozen)]
    if idle:
        LOGGER.info("%d of %d layers that drop are frozen, and drop nothing", len(idle), len(network.drops()))
    return frozen


def check_images(config: Config, data: DataSets, plan: BatchPlan) -> None:
    """Raises ConfigError where a global batch is more than all training images."""
    if plan.global_batch_size > len(data.train):
        raise ConfigError(
            f"batch.global_batch_size {plan.global_batch_size} is more than the {len(data.train)} training images of "
            f"{config.data.name}; lower it to {len(data.train)} or less"
        )


def check_learning(config: Config, plan: BatchPlan) -> None:
    """Raises ConfigError where sections on learning do not fit the batch plan."""
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
