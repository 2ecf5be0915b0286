"""Writes the records of a run as a table, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
import math
import os
from pathlib import Path
from typing import Any, Iterable, Mapping

from configs.atomic_file import describe_full_disk, open_without_following, replace_text
from experiment.metrics_log import COLUMNS


class CsvTracker:
    """A file with a line for each record of metrics.jsonl, and its fields as columns.

    What a record lacks, or is not finite, is empty. The power decomposition has no place in it.

    Args:
        path: the file; overwritten.
        past: records to write first.
    """

    def __init__(self, path: Path, past: Iterable[Mapping[str, Any]]) -> None:
        self._path = path
        lines = [_line(dict(zip(COLUMNS, COLUMNS)))] + [_line(record) for record in past if record["split"] != "power"]
        replace_text(path, "".join(lines))

    def log(self, record: Mapping[str, Any]) -> None:
        """Write one line, on the disk at once.

        Raises:
            OSError: as said.
        """
        if record["split"] == "power":
            return
        line = _line(record)
        try:
            descriptor = open_without_following(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise describe_full_disk(error, self._path, len(line)) from error

    def close(self) -> None:
        """Nothing is left to write."""


def _line(record: Mapping[str, Any]) -> str:
    cells = [record.get(column) for column in COLUMNS]
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(
        ["" if isinstance(cell, float) and not math.isfinite(cell) else cell for cell in cells]
    )
    return buffer.getvalue()
