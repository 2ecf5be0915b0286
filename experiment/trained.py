"""A trained network by itself: out of a run folder or a checkpoint, without the images that it was trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence, Tuple

from torch import Tensor

from configs import Config
from datasets.preprocessing import Preprocessing, preprocessing_of
from experiment.foreign_config import config_of_file
from experiment.network import build_network
from experiment.starting_weights import place_weights
from experiment.weights_file import NEWEST, SavedWeights, read_weights
from models import ImageClassifier
from training.pixels import pixel_scaling, scaled_pixels
from training.weights import CheckpointError


@dataclass(frozen=True)
class Trained:
    """A network with its weights, and what it takes and gives.

    Attributes:
        network: on the CPU, float32, in evaluation.
        saved: where the weights come from.
        config: what they were trained with.
        preprocessing: of the images that it takes.
        class_names: of its outputs.
    """

    network: ImageClassifier
    saved: SavedWeights
    config: Config
    preprocessing: Preprocessing
    class_names: Tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def inputs(self, pixels: Tensor) -> Tensor:
        """Return what the network is given for images. Shape: (N, C, H, W), uint8 -> same, float32."""
        return scaled_pixels(pixels, *pixel_scaling(self.preprocessing.mean, self.preprocessing.std))

    def __str__(self) -> str:
        which = "the average of the weights" if self.saved.is_average else "the weights"
        return f"{self.config.model.name}, {which} of step {self.saved.step:,} ({self.saved.path})"


@dataclass(frozen=True)
class _Images:
    """What a network is built for."""

    num_classes: int
    channels: int


def load_trained(
    path: Path, checkpoint: str = NEWEST, weights: Optional[str] = None, overrides: Sequence[str] = ()
) -> Trained:
    """Return the network of a run folder or a checkpoint of this program.

    Args:
        path: of the folder or file.
        checkpoint: which; see read_weights.
        weights: which; see read_weights.
        overrides: SECTION.KEY=VALUE, of its configuration.

    Raises:
        CheckpointError: it is not a checkpoint, or does not fit its own configuration.
        ConfigError: overrides that are none.
    """
    saved = read_weights(path, checkpoint, weights)
    if saved.config is None or saved.class_names is None:
        raise CheckpointError(
            f"{path} holds only weights, without network, image size or class names; name a run folder or a "
            "checkpoint of this program"
        )
    values = dict(saved.config)
    if isinstance(values.get("data"), dict):  # no image is read, so where they were does not matter
        values["data"] = {**values["data"], "dir": None, "cache_dir": None}
    config = config_of_file(values, saved.path, overrides)
    preprocessing = preprocessing_of(config.data)
    factory, network = build_network(config, _Images(len(saved.class_names), preprocessing.channels))
    place_weights(network, factory, saved, saved.class_names)
    return Trained(network.eval(), saved, config, preprocessing, saved.class_names)
