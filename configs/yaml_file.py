"""Reads a YAML file into plain values and remembers the line of every key.

A strict subset of YAML is accepted, in files and after --set, because the full language surprises: here `1e-4` is a
number, `no` is the string "no", `010` is not a number, a duplicate key is an error, and anchors, aliases and tags are
refused.
"""

import re
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import yaml

from configs.bounded_file import read_bounded
from configs.errors import ConfigError

MAX_BYTES = 1_000_000  # a config has about 2,000; more is some other file
MAX_DIGITS = 20  # of an integer; a seed of 2^63 has 19
MAX_DEPTH = 8  # a config has two levels, and lists
_SHOWN = 80  # characters of a value in a message
KeyPath = Tuple[str, ...]
Lines = Dict[KeyPath, int]


class _Loader(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's booleans, integers and floats."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[-1] == "null"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false|True|False)$"), list("tfTF"))
# A leading zero is octal in YAML 1.1 and decimal in 1.2: here 010 is not a number, and neither are 1_000 and 12:30:00.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(rf"^[-+]?(?:0|[1-9]\d{{0,{MAX_DIGITS - 1}}}|0x[0-9a-fA-F]{{1,16}})$"),
    list("-+0123456789"),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf)$|^\.(?:nan|NaN)$"),
    list("-+.0123456789"),
)


def parse_value(text: str) -> Any:
    """Return the value that `text` would have in a YAML file: `8` a number, `true` a boolean, `[1, 2]` a list.

    Raises:
        ConfigError: not a YAML value, or one that a file may not have either.
    """
    shown = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
    loader, root = _compose(text, shown)
    if isinstance(root, yaml.MappingNode):
        _index(shown, root, (), {})
    return None if root is None else loader.construct_document(root)


def read_yaml(path: Path) -> Tuple[Dict[str, Any], Lines]:
    """Return the mapping in the file at `path`, and the line number of each key path.

    Raises:
        ConfigError: unreadable, not UTF-8, too large, not YAML, not a mapping, duplicate keys, anchors or aliases.
    """
    try:
        text = read_bounded(path, MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    loader, root = _compose(text, str(path), str(path))
    if not isinstance(root, yaml.MappingNode):
        got = "an empty file" if root is None else "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        raise ConfigError(f"{path}: got {got} at the top, expected sections such as `model:`")
    lines: Lines = {}
    _index(str(path), root, (), lines)
    return loader.construct_document(root), lines


def _compose(text: str, name: str, path: Optional[str] = None) -> Tuple[_Loader, Optional[yaml.Node]]:
    """Return the nodes of a text without anything refused here. Errors begin with name and line."""
    try:
        loader = _Loader(text)
        _refuse_bombs(name, text)
        return loader, loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if path and mark else name
        raise ConfigError(f"{where}: not valid YAML: {_one_line(error)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        where = f"{path}:{line}" if path else name
        raise ConfigError(
            f"{where}: the character U+{ord(text[error.position]):04X} is not printable; remove it"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {_one_line(error)}") from error


def _refuse_bombs(name: str, text: str) -> None:
    # Before anything is composed: a few nested aliases expand to gigabytes, deep nesting takes quadratic time.
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        line = event.start_mark.line + 1 if event.start_mark else 0
        if depth > MAX_DEPTH:
            raise ConfigError(f"{name}:{line}: nested too deeply; a config has two levels")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or not _has_plain_tag(event):
            raise ConfigError(
                f"{name}:{line}: anchors (&), aliases (*) and tags (!) are not used here; write the value out"
            )


def _has_plain_tag(event: yaml.Event) -> bool:
    return getattr(event, "tag", None) in (None, "!")


def _index(name: str, node: yaml.MappingNode, prefix: KeyPath, lines: Lines) -> None:
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{name}:{line}: a key must be a word, got a list or a mapping")
        key_path = prefix + (key.value,)
        if key_path in lines:
            raise ConfigError(
                f"{name}:{line}: duplicate key {'.'.join(key_path)}, first given in line {lines[key_path]}"
            )
        lines[key_path] = line
        if isinstance(value, yaml.MappingNode):
            _index(name, value, key_path, lines)


def _one_line(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or str(error)
    return " ".join(str(problem).split())
