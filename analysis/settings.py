"""The settings of a run as "section.key" and value, and the words for them in tables and titles.

Read as they are, not through the schema: a run of an older version stays readable.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from analysis.norm_name import settings_label
from analysis.results_file import ResultsError
from configs import ConfigError
from configs.yaml_file import read_yaml

Settings = Mapping[str, Any]
_NAMES_NORM = ("norm.name", "norm.num_groups", "norm.proxy")


def flat_settings(config: Any, source: Path) -> Dict[str, Any]:
    """Return the settings of a configuration that is a mapping of sections.

    Raises:
        ResultsError: another form; the message names `source`.
    """
    if not isinstance(config, dict) or not all(isinstance(section, dict) for section in config.values()):
        raise ResultsError(f"{source}: the configuration does not consist of sections with keys")
    return {f"{section}.{key}": value for section, keys in config.items() for key, value in keys.items()}


def read_settings(path: Path) -> Dict[str, Any]:
    """Return the settings in the config.yaml of a run.

    Raises:
        ResultsError: a file that is not a configuration.
    """
    try:
        config, _ = read_yaml(path)
    except ConfigError as error:
        raise ResultsError(str(error)) from error
    return flat_settings(config, path)


def norm_of(settings: Settings) -> str:
    """BN, LN+PN, GN8: the norm as the paper writes it."""
    groups = settings.get("norm.num_groups")
    return settings_label(str(settings.get("norm.name")), groups, settings.get("norm.proxy") is True)


def network_of(settings: Settings) -> str:
    return f"{settings.get('model.name')}, {norm_of(settings)}"


def run_title(name: str, settings: Settings) -> str:
    """Return what stands above the pictures of one run."""
    return f"{name}: {network_of(settings)}, seed {setting_text(settings.get('run.seed'))}"


def settings_texts(settings: Settings, keys: Sequence[str]) -> List[str]:
    """Return the values of `keys`, short: GN8+PN for those that name a norm, width=8 for model.width."""
    texts = [norm_of(settings)] if any(key in _NAMES_NORM for key in keys) else []
    if not str(settings.get("norm.name")).startswith("batch"):  # 1 for every other norm, and says nothing
        keys = [key for key in keys if key != "batch.norm_batch_size"]
    last_words = [key.partition(".")[2] for key in keys]
    for key, word in zip(keys, last_words):
        if key not in _NAMES_NORM:
            texts.append(f"{word if last_words.count(word) == 1 else key}={setting_text(settings.get(key))}")
    return texts


def setting_text(value: Any) -> str:
    """Return a value as YAML has it."""
    is_plain = isinstance(value, (int, float)) or (isinstance(value, str) and value.isprintable())
    return str(value) if is_plain and not isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


def differing_settings(all_settings: Sequence[Settings]) -> List[str]:
    """Return the keys whose values are not the same in all; one that is missing counts as null."""
    keys = dict.fromkeys(key for settings in all_settings for key in settings)
    return [key for key in keys if len({repr(settings.get(key)) for settings in all_settings}) > 1]
