"""A configuration that came in a file: it says what the network is, and never where this program reads or connects."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any, Mapping, Sequence, Tuple

import yaml

from configs import Config, ConfigError, load_config
from configs.passwords import hide_passwords
from training.weights import CheckpointError

# What decides where the program reads, writes or connects, or how much of the machine it takes.
_OF_THE_COMMAND = {
    "data": ("dir", "cache_dir", "workers"),
    "model": ("pretrained",),
    "run": ("output_dir", "wandb", "wandb_project"),
}
LOGGER = logging.getLogger(__name__)


def config_of_file(
    values: Any, source: Path, overrides: Sequence[str] = (), texts: Sequence[Tuple[str, str, str]] = ()
) -> Config:
    """Return the configuration in a checkpoint or a run folder, with the places that the user's own command gives.

    Args:
        values: the configuration as plain values.
        source: the file that holds it, for messages.
        overrides: those of the command; see load_config.
        texts: those of the command; see load_config.

    Raises:
        CheckpointError: it is not a configuration.
        ConfigError: its data lay in a place that the command does not name.
    """
    if not isinstance(values, Mapping) or not all(isinstance(section, Mapping) for section in values.values()):
        raise CheckpointError(f"the configuration in {source} does not consist of sections; add --config NAME")
    own = {section: dict(given) for section, given in values.items()}
    place = own.get("data", {}).get("dir")
    for section, keys in _OF_THE_COMMAND.items():
        for key in keys:
            own.get(section, {}).pop(key, None)
    _settle_reset(own)
    given = [override.partition("=")[0] for override in overrides] + [key for _, key, _ in texts]
    if place is not None and "data.dir" not in given:
        _tell_place(str(place), source)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{source.name}.yaml"
        try:
            path.write_text(yaml.safe_dump(own))
        except yaml.YAMLError as error:
            raise CheckpointError(f"the configuration in {source} holds more than plain values") from error
        return load_config(str(path), overrides, texts)


def _settle_reset(own: Mapping[str, Any]) -> None:
    """Without `pretrained`, resetting the classifier has no effect, and is refused; the file's weights have one."""
    if own.get("model", {}).get("reset_classifier"):
        own["model"].pop("reset_classifier")


def _tell_place(place: str, source: Path) -> None:
    shown = hide_passwords(place)
    if os.environ.get("DATA_DIR"):
        LOGGER.warning("%s names the data %r, which is not followed; DATA_DIR is read", source, shown)
        return
    raise ConfigError(
        f"{source} was trained on data in {shown!r}. A file does not decide what is read or connected to: if you trust "
        f"that place, name it yourself (--set data.dir={shown}; in analyze.py --data-dir {shown}), or set DATA_DIR"
    )
