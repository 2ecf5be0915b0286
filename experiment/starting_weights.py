"""Weights that were trained before, put into the network of a configuration: what must agree, and what is warned of."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple

from experiment.checkpoint import check_norm
from experiment.weights_file import SavedWeights
from models import ImageClassifier
from models.foreign_names import foreign_eps
from models.pretrained import OURS, load_pretrained
from normact import NormActFactory
from training.weights import CheckpointError

LOGGER = logging.getLogger(__name__)


def place_weights(
    network: ImageClassifier,
    factory: NormActFactory,
    saved: SavedWeights,
    class_names: Tuple[str, ...],
    *,
    reset_classifier: bool = False,
) -> None:
    """Copy saved weights into a network: of a checkpoint, or of any state dict that models.pretrained knows.

    Args:
        network: changed in place.
        factory: made the network's norms.
        saved: the weights.
        class_names: of the images, by label; those of the weights must be the same, but for a new classifier.
        reset_classifier: keep the network's own classifier.

    Raises:
        CheckpointError: they do not fit.
    """
    if not reset_classifier:
        check_classes(saved, class_names)
    if saved.norm is not None:
        check_norm(saved.norm, norm_record(factory))
    if saved.config is not None:
        check_activation(saved.config, network, saved.path)
    try:
        source = load_pretrained(network, saved.tensors, reset_classifier=reset_classifier)
    except ValueError as error:
        raise CheckpointError(f"{saved.path}: {error}") from error
    if source != OURS and factory.eps is not None and factory.eps != foreign_eps(network, source):
        LOGGER.warning(
            "norm.eps is %g, but weights do not record theirs: in %s this network has %g; use --set norm.eps=%g",
            *(factory.eps, source, foreign_eps(network, source), foreign_eps(network, source)),
        )


def check_activation(config: Mapping[str, Any], network: ImageClassifier, path: Path) -> None:
    """Refuse weights that were trained with another activation, which no shape reveals.

    Raises:
        CheckpointError: as said.
    """
    if "model" not in config:
        raise CheckpointError(f"{path} does not say what network it was trained with: its configuration has no model")
    trained = config["model"].get("activation") or network.default_activation
    if trained != network.activation:
        raise CheckpointError(
            f"{path} was trained with the activation {trained}, and this network has {network.activation}; set "
            f"model.activation to {trained}"
        )


def check_classes(saved: SavedWeights, class_names: Tuple[str, ...]) -> None:
    """Refuse weights for as many classes that are others, or in another order.

    Another number of classes shows in the classifier's shape.

    Raises:
        CheckpointError: as said.
    """
    if saved.class_names is None or len(saved.class_names) != len(class_names):
        return
    different = [label for label, names in enumerate(zip(saved.class_names, class_names)) if names[0] != names[1]]
    if different:
        first = different[0]
        raise CheckpointError(
            f"{saved.path} was trained on other classes: {len(different)} of {len(class_names)} differ, class {first} "
            f"is {saved.class_names[first]!r} there and {class_names[first]!r} here. Use its classes in its order, "
            "or set model.reset_classifier to train a new classifier"
        )


def norm_record(factory: NormActFactory) -> Dict[str, Any]:
    """Return the settings of a norm that no shape of a weight reveals."""
    hidden = ("num_groups", "grouping", "eps", "proxy_eps")
    return {"name": factory.norm, **{name: getattr(factory, name) for name in hidden}}
