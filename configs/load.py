"""From a name on the command line to a checked Config, with errors that name file, line and key."""

import difflib
import os
import re
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
_LONGEST_SHOWN = 120  # characters of an override in a message
_GRIDS = "grids"  # the folder of tables of runs, which are not experiments
_OF_32_GROUPS = ("rn50", "rn101", "rnx50", "rnx101")  # the paper's plain group norm in ResNets


def load_config(name_or_path: str, overrides: Sequence[str] = (), texts: Sequence[Tuple[str, str, str]] = ()) -> Config:
    """Return the experiment called `name_or_path`: configs/*/<name>.yaml, or the path of a YAML file.

    Args:
        name_or_path: of the experiment.
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
        sources[key_path] = _shown(override)
    for option, key, text in texts:
        section, _, field = key.partition(".")
        _section_of(values, section, option)[field] = text
        sources[(section, field)] = f"{option} {text}"
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, Config, path, lines, sources))) from error


def config_names() -> List[str]:
    """Return the names of the shipped experiments."""
    return sorted(_shipped_files())


def config_name(name_or_path: str) -> str:
    """Return what a run of `--config name_or_path` is called: the name as it was given, or that of the file."""
    return Path(name_or_path).stem


def own_seed(name_or_path: str) -> Optional[int]:
    """Return the run.seed that the file itself gives; None where it gives none."""
    path = find_config(name_or_path)
    values = _on_its_base(read_yaml(path)[0], path, {})
    run = values.get("run")
    return run.get("seed") if isinstance(run, dict) else None


def find_config(name_or_path: str, source: str = "--config") -> Path:
    """Return the YAML file of a shipped name or of a path. Errors begin with `source`, where it was named."""
    if name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path:
        return named_file(name_or_path, f"{source} {name_or_path}")
    files = _shipped_files()
    found = files.get(name_or_path) or files.get(_present_name(name_or_path))
    if found is None:
        near = _of_network(name_or_path, files) or difflib.get_close_matches(name_or_path, files, n=_NEAREST_SHOWN)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise ConfigError(
            f"{source} {name_or_path}: no such experiment{hint}. `ls {FOLDER}/*/` lists all "
            f"{len(files)}; the path of a YAML file works too"
        )
    return found


def named_file(path: str, named: str) -> Path:
    """Return the path of something that is there; what is no file, its reader says. Errors begin with `named`."""
    try:
        os.stat(path)
    except (OSError, ValueError) as error:  # ValueError: no system takes such a name
        is_missing = isinstance(error, FileNotFoundError)
        reason = "no such file" if is_missing else getattr(error, "strerror", None) or error
        raise ConfigError(f"{named}: {reason}") from error
    return Path(path)


def _shipped_files() -> Dict[str, Path]:
    """name -> file. One folder a data set, and one for IPUs; names are unique over the folders."""
    return {path.stem: path for path in FOLDER.glob("*/*.yaml") if path.parent.name != _GRIDS}


def _of_network(name: str, files: Dict[str, Path]) -> List[str]:
    """Experiments with a network called `name`, as rn50_* of resnet50: a likely slip."""
    network = re.compile(rf"(?m)^model:\n(?:  .*\n)*?  name: {re.escape(name)}(?:\s|$)")
    found = [stem for stem, path in files.items() if network.search(path.read_text(encoding="utf-8"))]
    return sorted({f"{stem.rpartition('_')[0]}_*" for stem in found})


def _present_name(name: str) -> str:
    """Return today's name of an experiment once called `name`: former names left out the groups of group norm."""
    match = re.fullmatch(r"(.+?)_gn(ws)?(pn)?(_.+)?", name)
    if match is None:
        return name
    network, ws, pn, rest = match.groups(default="")
    plain_groups = 32 if network in _OF_32_GROUPS and not ws and not pn else 8
    return f"{network}_gn{4 if 'en' in network.split('_') else plain_groups}{ws}{pn}{rest}"


def dump_config(config: Config) -> str:
    """Return the complete configuration as YAML, defaults included: reading it back gives the same Config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _on_its_base(values: Dict[str, Any], path: Path, sources: Dict[KeyPath, str]) -> Dict[str, Any]:
    """Where a file names another experiment as its `base`: that one's values, replaced key by key by the file's own.

    A base may have a base itself. `null` leaves out what the base gives.
    """
    chain = [path]
    own_values = [values]
    while (name := own_values[-1].pop("base", None)) is not None:
        base_path = find_config(str(name), f"{chain[-1]}: base")
        if base_path.resolve() in [file.resolve() for file in chain]:
            raise ConfigError(f"{chain[-1]}: base {name} is a file that has this one as a base; name another")
        base, base_lines = read_yaml(base_path)
        for key_path, line in base_lines.items():
            if len(key_path) == 2:
                sources.setdefault(key_path, f"{base_path}:{line}")
        chain.append(base_path)
        own_values.append(base)
    whole = own_values.pop()
    for file, own in zip(chain[-2::-1], own_values[::-1]):
        for section, fields in own.items():
            if not isinstance(fields, dict):
                raise ConfigError(f"{file}: {section} is not a section with keys")
            _section_of(whole, section, str(file)).update(fields)
    for section, fields in values.items():
        if isinstance(fields, dict):
            for key in fields:
                sources.pop((section, key), None)  # these are found in the file's own lines
    return whole


def _apply_override(values: Dict[str, Any], override: str) -> KeyPath:
    source = _shown(override)
    key, equals, text = override.partition("=")
    section, dot, field = key.partition(".")
    if not equals or not dot or not section or not field:
        raise ConfigError(f"{source}: expected section.key=value, e.g. --set schedule.epochs=5")
    try:
        value = parse_value(text)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    _section_of(values, section, source)[field] = value
    return (section, field)


def _shown(override: str) -> str:
    return f"--set {override if len(override) <= _LONGEST_SHOWN else f'{override[:_LONGEST_SHOWN]}...'}"


def _section_of(values: Dict[str, Any], section: str, source: str) -> Dict[str, Any]:
    found = values.setdefault(section, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{source}: {section} is not a section of this config")
    return found
