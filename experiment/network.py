"""The network that a configuration describes: built, measured, and with all that training puts around it.

train.py, evaluate.py and analyze.py build it here, so that all of them have the same network from the same file.
"""

from __future__ import annotations

import copy
import logging
from typing import List, Tuple

import torch
from torch import nn
from typing_extensions import Protocol

from configs import Config, ConfigError
from configs.schema import ModelConfig
from datasets import DataSets
from experiment.norm_corrections import corrections
from models import ImageClassifier, build_model
from models.cost import Cost, measure_cost
from normact import NormActFactory, recompute_activations
from training.classifier import Classifier
from training.draws import StepDraws
from training.freezing import freeze_all_but
from training.mixing import Mixing

OWN_NONLINEARITY = ("frn", "evonorm_s0")
LOGGER = logging.getLogger(__name__)


class Images(Protocol):
    """What a network has to know of the images that it is for."""

    @property
    def num_classes(self) -> int: ...

    @property
    def channels(self) -> int: ...


def build_network(config: Config, data: Images) -> Tuple[NormActFactory, ImageClassifier]:
    """Return the network of sections `model` and `norm` for the images of `data`, weights drawn from the seed.

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
    except ValueError as error:
        raise ConfigError(f"{error}{corrections(config, given)}") from error
    try:
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
    """Return what the network computes and keeps for one image.

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
    """Return the network with all that section `regularization`, norm.recompute and model.train_only put around it."""
    if config.norm.recompute:
        recompute_activations(network)
    draws = StepDraws(Mixing.of(config.regularization, data.image_size), network.drops())
    frozen = freeze(config.model, network)
    return Classifier(network, data.mean, data.std, config.regularization.label_smoothing, draws, frozen)


def freeze(config: ModelConfig, network: ImageClassifier) -> List[nn.Module]:
    """Freeze all but model.train_only, and return the frozen modules.

    Raises:
        ConfigError: a name that is not a module.
    """
    if config.train_only is None:
        return []
    try:
        frozen = freeze_all_but(network, config.train_only)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    idle = [drop for drop in network.drops() if any(drop is module for module in frozen)]
    if idle:
        LOGGER.info(
            "%d of %d dropout and drop-path layers are frozen, and drop nothing", len(idle), len(network.drops())
        )
    return frozen
