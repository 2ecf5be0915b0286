"""From a name on the command line to a checked Config, with errors that name file, line and key."""

import difflib
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import yaml
from pydantic import ValidationError

from configs.errors import ConfigError
from configs.explain import explain
from configs.schema import Config
from configs.yaml_file import KeyPath, parse_value, read_yaml

FOLDER = Path(__file__).resolve().parent
_NEAREST_SHOWN = 4


def load_config(name_or_path: str, overrides: Sequence[str] = (), texts: Sequence[Tuple[str, str, str]] = ()) -> Config:
    """The experiment called `name_or_path`: configs/<name>.yaml, or the path of a YAML file.

    Args:
        overrides: `section.key=value` each, applied in order; the values are read as YAML.
        texts: (option, section.key, text) each, applied last; the text is taken as it is, and errors name the option.

    Raises:
        ConfigError: one line for each problem.
    """
    path = find_config(name_or_path)
    values, lines = read_yaml(path)
    sources: Dict[KeyPath, str] = {}
    values = _on_its_base(values, path, sources)
    for override in overrides:
        key_path = _apply_override(values, override)
        sources[key_path] = f"--set {override}"
    for option, key, text in texts:
        section, _, field = key.partition(".")
        _section_of(values, section, option)[field] = text
        sources[(section, field)] = f"{option} {text}"
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, Config, path, lines, sources))) from error


def config_names() -> List[str]:
    """The names of the shipped experiments."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def own_seed(name_or_path: str) -> Optional[int]:
    """The run.seed that the file itself gives; None where it gives none."""
    path = find_config(name_or_path)
    values = _on_its_base(read_yaml(path)[0], path, {})
    run = values.get("run")
    return run.get("seed") if isinstance(run, dict) else None


def find_config(name_or_path: str, source: str = "--config") -> Path:
    """The YAML file of a shipped name or of a path. Errors begin with `source`, where it was named."""
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        path = Path(name_or_path)
        if not path.is_file():
            raise ConfigError(f"{source} {name_or_path}: no such file")
        return path
    path = FOLDER / f"{name_or_path}.yaml"
    if not path.is_file():
        names = config_names()
        near = difflib.get_close_matches(name_or_path, names, n=_NEAREST_SHOWN)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise ConfigError(
            f"{source} {name_or_path}: no such experiment{hint}. `ls {FOLDER}` lists all "
            f"{len(names)}; the path of a YAML file will do as well"
        )
    return path


def dump_config(config: Config) -> str:
    """The complete configuration as YAML, defaults included: reading it back gives the same Config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _on_its_base(values: Dict[str, Any], path: Path, sources: Dict[KeyPath, str]) -> Dict[str, Any]:
    """Where a file names another experiment as its `base`: that one's values, replaced key by key by the file's own.

    For files that say only how an experiment is executed elsewhere, so that what it means is written once.
    """
    name = values.pop("base", None)
    if name is None:
        return values
    base_path = find_config(str(name), f"{path}: base")
    base, base_lines = read_yaml(base_path)
    if "base" in base:
        raise ConfigError(f"{path}: its base {name} has a base itself; name {base['base']} or write the values out")
    sources.update((key_path, f"{base_path}:{line}") for key_path, line in base_lines.items() if len(key_path) == 2)
    for section, own in values.items():
        if not isinstance(own, dict):
            raise ConfigError(f"{path}: {section} is not a section with keys")
        _section_of(base, section, str(path)).update(own)
        for key in own:
            sources.pop((section, key), None)
    return base


def _apply_override(values: Dict[str, Any], override: str) -> KeyPath:
    key, equals, text = override.partition("=")
    section, dot, field = key.partition(".")
    if not equals or not dot or not section or not field:
        raise ConfigError(f"--set {override}: expected section.key=value, e.g. --set schedule.epochs=5")
    try:
        value = parse_value(text)
    except ConfigError as error:
        raise ConfigError(f"--set {override}: {error}") from error
    _section_of(values, section, f"--set {override}")[field] = value
    return (section, field)


def _section_of(values: Dict[str, Any], section: str, source: str) -> Dict[str, Any]:
    found = values.setdefault(section, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{source}: {section} is not a section of this config")
    return found
