"""Results as JSON files that are whole at every moment, so that a stopped analysis goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict


class ResultsError(ValueError):
    """A results file that cannot be continued or drawn. The message says why and what to do."""


def write_results(path: Path, results: Dict[str, Any]) -> None:
    """Write `results` as one JSON object, atomically; the folder is made.

    Raises: ValueError for a number that is not finite; OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(results, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def read_results(path: Path) -> Dict[str, Any]:
    """The inverse of `write_results`.

    Raises: ResultsError for a file that is missing or no results file.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read as results: {error}") from error
    if not isinstance(results, dict):
        raise ResultsError(f"{path} holds no JSON object")
    return results
