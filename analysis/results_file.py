"""Results as JSON files that are whole at every moment, so that a stopped analysis continues where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict

from configs.atomic_file import replace_text
from configs.bounded_file import MIB, parse_json, read_bounded

MAX_BYTES = 64 * MIB  # Python's form of a JSON text takes ten times as much


class ResultsError(ValueError):
    """A results file that cannot be continued or drawn. The message says why and what to do."""


def write_results(path: Path, results: Dict[str, Any]) -> None:
    """Write `results` as one JSON object, atomically; the folder is made.

    Raises:
        ValueError: a number that is not finite.
        OSError: as said.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(results, allow_nan=False) + "\n")


def read_results(path: Path) -> Dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        ResultsError: a file that is missing, or holds something else.
    """
    try:
        results = parse_json(read_bounded(path, MAX_BYTES))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(results, dict):
        raise ResultsError(f"{path} holds {type(results).__name__}, expected one JSON object")
    return results
