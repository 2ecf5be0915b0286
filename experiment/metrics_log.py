"""The files that record what a run measured: metrics.jsonl, summary.json and status.json."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Union

from configs.atomic_file import describe_full_disk, open_without_following, replace_file, replace_text
from configs.bounded_file import MAX_LOG_BYTES, MAX_RECORD_BYTES, parse_json, read_bounded
from training.metrics import Means
from training.weights import CheckpointError

# of the records of metrics.jsonl, in their order
COLUMNS = ("split", "step", "epoch", "loss", "top1", "top5", "learning_rate", "gradient_norm", "images_per_second")


class MetricsLog:
    """A file of metrics, one JSON object a line, appended to and flushed record by record.

    Strict JSON: a value that is NaN or infinite is written as null, so that a log of a run that diverged can be read by
    any reader, and a gap in a curve shows where.

    Args:
        path: the file, e.g. metrics.jsonl; its folder exists. Made by the first record.
    """

    def __init__(self, path: Union[str, Path]) -> None:
        self.path = Path(path)

    def append(
        self,
        *,
        split: str,
        step: int,
        epoch: float,
        means: Means,
        images_per_second: float,
        learning_rate: Optional[float] = None,
        gradient_norm: Optional[float] = None,
    ) -> Dict[str, Any]:
        """Append one record, and return it.

        Args:
            split: "train", "validation" or "eval".
            step: weight updates done when it was measured.
            epoch: passes over the training images done by then.
            means: what was measured.
            images_per_second: over all replicas.
            learning_rate: in force at the last update; train records have it, others do not.
            gradient_norm: mean over the record's weight updates, before clipping; None where nothing is clipped.

        Raises:
            ValueError: another split; a learning rate missing in train, or given elsewhere.
            OSError: as said.
        """
        if split not in ("train", "validation", "eval"):
            raise ValueError(f"split {split!r} must be train, validation or eval")
        if (split == "train") != (learning_rate is not None):
            raise ValueError(f"learning_rate {learning_rate}, split {split}: train records have one, others none")
        record: Dict[str, Any] = {"split": split, "step": step, "epoch": epoch, **means._asdict()}
        if learning_rate is not None:
            record["learning_rate"] = learning_rate
        if gradient_norm is not None:
            record["gradient_norm"] = gradient_norm
        record["images_per_second"] = images_per_second
        self.append_record(record)
        return record

    def append_record(self, record: Mapping[str, Any]) -> None:
        """Append one record with a split and a step, whatever else it holds.

        Raises:
            OSError: as said.
        """
        # Opened for each record: no handle to lose, and truncate_after may replace the file in between.
        line = _strict_json(dict(record)) + "\n"
        try:
            descriptor = open_without_following(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            with os.fdopen(descriptor, "a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                # As durable as the checkpoint that follows: a run that goes on from that finds all rows before it.
                os.fsync(file.fileno())
        except OSError as error:
            raise describe_full_disk(error, self.path, len(line)) from error

    def records(self) -> List[Dict[str, Any]]:
        """Return all records; the file is as `truncate_after` leaves it."""
        return read_records(self.path)

    def truncate_after(self, step: int, evaluated_step: int) -> int:
        """Drop the records later than a resumed step and a torn last line; return the number of records dropped.

        Training records of `step` itself stay: a run writes them before the checkpoint of that step. The file is
        rewritten as a whole or not at all.

        Args:
            step: weight updates done at the point of resumption.
            evaluated_step: the last step whose evaluation the resumed state knows; a later one is done again, with all
                that is not training.

        Lines of zero bytes, which a loss of power leaves where rows were not yet on the disk, are dropped too: they are
        later than every checkpoint.

        Raises:
            CheckpointError: a line, other than the last, that is not a record.
        """
        if not self.path.exists():
            return 0
        lines = read_bounded(self.path, MAX_LOG_BYTES).splitlines()
        kept: List[bytes] = []
        for number, line in enumerate(lines, start=1):
            try:
                record = parse_json(line)
                is_kept = record["step"] <= (step if record["split"] == "train" else evaluated_step)
            except (ValueError, TypeError, KeyError) as error:
                if number == len(lines) or not line.strip(b"\0"):
                    continue
                raise CheckpointError(
                    f"{self.path}, line {number} is not a metrics record: {line[:80]!r}; repair or remove the line"
                ) from error
            if is_kept:
                kept.append(line)
        replace_file(self.path, b"".join(line + b"\n" for line in kept))
        return len(lines) - len(kept)


def write_summary(path: Union[str, Path], summary: Mapping[str, Any]) -> None:
    """Write the result of a finished run as one JSON object, atomically; not finite numbers become null."""
    replace_text(path, _strict_json(dict(summary), indent=2) + "\n")


def read_state(path: Union[str, Path]) -> Optional[str]:
    """Return the word that `write_status` wrote; None where there is no such file."""
    try:
        return str(parse_json(read_bounded(path, MAX_RECORD_BYTES))["state"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_status(path: Union[str, Path], state: str, reason: str, exit_code: Optional[int], step: int) -> None:
    """Write why a run is where it is, atomically. A launcher hides exit codes and messages; this file keeps them.

    Args:
        path: the file, e.g. status.json.
        state: one word, e.g. running, done, failed, preempted.
        reason: one readable sentence.
        exit_code: of the process; None while it runs.
        step: weight updates done.
    """
    status = {"state": state, "reason": reason, "exit_code": exit_code, "step": step}
    data = (_strict_json(status, indent=2) + "\n").encode("utf-8")
    try:
        replace_file(path, data)
    except OSError:
        # A full disk has no room for a second file, but the block of the present one takes these few bytes.
        if exit_code is None:
            raise
        with os.fdopen(open_without_following(Path(path), os.O_RDWR), "r+b") as file:
            file.write(data)
            file.truncate()


def _strict_json(value: Dict[str, Any], indent: Optional[int] = None) -> str:
    return json.dumps(_finite_or_null(value), allow_nan=False, indent=indent)


def _finite_or_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite_or_null(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite_or_null(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_records(path: Path) -> List[Dict[str, Any]]:
    """Return all records of a log; none where there is no file."""
    if not path.exists():
        return []
    return [parse_json(line) for line in read_bounded(path, MAX_LOG_BYTES).splitlines()]
