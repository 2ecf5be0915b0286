"""What is wrong with a YAML file, one line for each problem: where, what was received, the rule, what to do."""

import difflib
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Set, Tuple, Type, Union

from pydantic import BaseModel, ValidationError
from typing_extensions import get_origin

from configs.yaml_file import KeyPath, Lines


def explain(
    error: ValidationError,
    root: Type[BaseModel],
    path: Path,
    lines: Lines,
    sources: Optional[Mapping[KeyPath, str]] = None,
) -> List[str]:
    """Return one line for each problem of a file that was read as `root`.

    Args:
        error: pydantic's, with one or more problems.
        root: the model that the file was read as.
        path: of the file.
        lines: the line of each key of the file at `path`.
        sources: where a value came from that is not the file's own.
    """
    sources = sources or {}
    messages: List[str] = []
    misspelt: Set[KeyPath] = set()
    # Unknown keys first: one that is near a missing key is that key, misspelt, and one message is enough.
    for problem in sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden"):
        key_path = tuple(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            misspelt.update(key_path[:-1] + (name,) for name in _nearest(key_path, root))
        elif problem["type"] == "missing" and key_path in misspelt:
            continue
        where = _locate(key_path, path, lines, sources)
        name = f"{'.'.join(key_path)}: " if key_path else ""
        messages.append(f"{where}: {name}{_problem(problem, key_path, root)}")
    return messages


def explain_options(error: ValidationError) -> str:
    """One line for the problems of values that were given as options of these names."""
    problems = error.errors(include_url=False)
    return "; ".join(
        f"--{'.'.join(str(part) for part in problem['loc']).replace('_', '-')} {problem['input']}: {problem['msg']}"
        for problem in problems
    )


def _locate(key_path: KeyPath, path: Path, lines: Lines, sources: Mapping[KeyPath, str]) -> str:
    for length in range(len(key_path), 1, -1):
        if key_path[:length] in sources:
            return sources[key_path[:length]]
    if (
        len(key_path) == 1
    ):  # a rule between fields of a section: an override that touched the section is the likely cause
        touched = [source for other, source in sources.items() if other[0] == key_path[0]]
        if touched:
            return touched[-1]
    for length in range(len(key_path), 0, -1):
        if key_path[:length] in lines:
            return f"{path}:{lines[key_path[:length]]}"
    return str(path)


_LONGEST = 80  # characters of a value in a message
_EXPECTED = {
    "string_type": "a word or quoted text",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "model_type": "a section with keys",
    "model_attributes_type": "a section with keys",
    "dict_type": "a section with keys",
    "tuple_type": "a list such as [30, 60]",
}


def _problem(problem: Any, key_path: KeyPath, root: Type[BaseModel]) -> str:
    kind = problem["type"]
    if kind == "extra_forbidden":
        near = _nearest(key_path, root)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(_known_keys(key_path[:-1], root))}"
        return f"unknown key (got {_shown(problem['input'])}); {hint}"
    if kind == "missing":
        return "missing; add it"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    expected = _EXPECTED.get(kind)
    return f"got {_shown(problem['input'])}, expected {expected or problem['msg'].replace('Input should be ', '')}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _nearest(key_path: KeyPath, root: Type[BaseModel]) -> Sequence[str]:
    return difflib.get_close_matches(key_path[-1], _known_keys(key_path[:-1], root), n=1, cutoff=0.5)


def _known_keys(section: Tuple[str, ...], root: Type[BaseModel]) -> List[str]:
    found: Any = root
    for name in section:
        if _is_section(found):
            field = found.model_fields.get(name)
            found = field.annotation if field else None
            # Optional[Section]: the section
            found = next((part for part in getattr(found, "__args__", ()) if get_origin(found) is Union), found)
        else:  # Dict[str, Section]: any name leads to a section
            found = getattr(found, "__args__", (None,))[-1]
    return list(found.model_fields) if _is_section(found) else []


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
