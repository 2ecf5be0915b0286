"""A run that begins with the weights of a network that was trained with batch norm, and has another norm."""

from __future__ import annotations

import logging

import torch

from configs import Config, ConfigError
from configs.schema import NormConfig
from datasets import DataSets
from experiment.network import build_network
from experiment.starting_weights import place_weights
from experiment.weights_file import SavedWeights
from models import ImageClassifier
from normact import NormAct, NormActFactory
from normact.convert.calibrate import calibrate_layers, check_calibration, outputs_of, source_of
from training.classifier import Classifier

LOGGER = logging.getLogger(__name__)


def start_from_batch_norm(
    network: ImageClassifier, factory: NormActFactory, saved: SavedWeights, config: Config, data: DataSets
) -> None:
    """Give a network the weights of one with batch norm, so that its function stays as nearly as constants allow.

    Args:
        network: as configured, with another norm.
        factory: made its norms.
        saved: the weights, of the same network with batch norm.
        config: says over how many training images the norms' moments are taken.
        data: their images, without augmentation.

    Raises:
        ConfigError: the network's own norm cannot take the place of batch norm.
        CheckpointError: the weights do not fit the network with batch norm.
    """
    try:
        check_calibration(factory)
    except ValueError as error:
        raise ConfigError(f"model.calibration_images: {error}") from error
    eps = None if saved.norm is None else saved.norm.get("eps")
    batch_norm = NormConfig(name="batch", proxy=False, eps=eps)
    original_factory, original = build_network(config.model_copy(update={"norm": batch_norm}), data)
    is_reset = config.model.reset_classifier
    place_weights(original, original_factory, saved, data.class_names, reset_classifier=is_reset)
    weights = original.state_dict()
    network.load_state_dict({name: weights.get(name, value) for name, value in network.state_dict().items()})
    layers = {
        layer: source_of(path, original.get_submodule(path).norm)  # type: ignore[arg-type]
        for path, layer in network.named_modules()
        if isinstance(layer, NormAct)
    }
    assert config.model.calibration_images is not None
    images = data.plain_training_images(config.model.calibration_images)
    pixels = torch.stack([images[index][0] for index in range(len(images))])
    scaled = Classifier(network, data.mean, data.std).scaled(pixels)
    rows = calibrate_layers(network, layers, scaled)
    LOGGER.info(
        "%d norms calibrated from batch norm over %d training images%s", len(rows), len(images), outputs_of(rows)
    )
