"""One JSON file for each finished run: what it was, and what came out."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any, Dict, List, Optional

from pydantic import ValidationError

from configs import Config, ConfigError
from configs.atomic_file import replace_text
from configs.bounded_file import MAX_LOG_BYTES, MAX_RECORD_BYTES, parse_json, read_bounded
from configs.meaning import differences
from experiment.metrics_log import read_records
from experiment.run_folder import RunFolder
from grids.plan import Trial

_RECORDED = (
    "power_every_epochs",
    "power_images",
    "evaluate_training_images",
    "reestimation_images",
)  # of section run: they decide what a result holds


class Results:
    """The files of one grid: <folder>/ROW[.COLUMN].seedN.json, and rates/ROW[.COLUMN].xFACTOR.json."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder

    def path(self, trial: Trial) -> Path:
        return self.folder / f"{trial.file_name}.json"

    def read(self, trial: Trial) -> Optional[Dict[str, Any]]:
        """Return the result of `trial`; None where there is none.

        Raises:
            ConfigError: a file that is not a result.
        """
        path = self.path(trial)
        try:
            result = parse_json(read_bounded(path, MAX_LOG_BYTES))
            check_result(result)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path} is not the result of a run ({error}); remove it, and it is run again") from error
        return result

    def write(
        self, trial: Trial, config: Config, folder: RunFolder, learning_rate: Dict[str, Any], diverged: bool
    ) -> Dict[str, Any]:
        """Write, and return, the result of a run that ended, from its folder.

        Args:
            trial: the run.
            config: what the run was trained with.
            folder: the run's.
            learning_rate: what the check said.
            diverged: its loss was not finite: there is no summary.

        Raises:
            ValueError, KeyError, TypeError: the folder's files are not what such a run writes.
            OSError: they cannot be read, or the result not written.
        """
        records = read_records(folder.metrics)
        result = {
            "grid": self.name,
            "row": trial.cell.row,
            "column": trial.cell.column,
            "seed": trial.seed,
            "experiment": trial.cell.experiment,
            "learning_rate": {"value": config.optimizer.learning_rate, **learning_rate},
            "summary": None if diverged else _summary(folder),
            "train_loss": last_epoch_loss(records, config.schedule.epochs),
            "evaluations": [record for record in records if record["split"] == "eval"],
            "power": read_records(folder.power),
            "config": config.model_dump(mode="json"),
        }
        check_result(result)
        path = self.path(trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(result, indent=1) + "\n")
        return result


def check_result(result: Any) -> None:
    """Refuse what is not the result of a run: a file of another kind, or one that somebody edited.

    Raises:
        ValueError: as said.
    """
    keys = {"config", "summary", "train_loss", "learning_rate"}
    if not isinstance(result, dict) or not keys <= set(result):
        raise ValueError(f"one of {', '.join(sorted(keys))} is missing")
    if not (result["train_loss"] is None or is_finite(result["train_loss"])):
        raise ValueError(f"train_loss is {result['train_loss']!r:.80}, no number")
    rate = result["learning_rate"]
    if not isinstance(rate, dict) or not is_finite(rate.get("value")):
        raise ValueError(f"learning_rate.value is missing, or no number: {rate!r:.80}")
    if not isinstance(result["config"], dict) or not isinstance(result["summary"], (dict, type(None))):
        raise ValueError("config or summary has no names and values")


def is_finite(value: Any) -> bool:
    """Whether it is a number that a table can hold."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def why_changed(saved: Dict[str, Any], config: Config) -> List[str]:
    """Return what differs between the saved configuration of a run and today's; empty where that run still counts."""
    try:
        # What the schema has got since then had its default.
        saved = Config.model_validate(saved).model_dump(mode="json")
    except ValidationError as error:
        names = {".".join(str(part) for part in problem["loc"][:2]) for problem in error.errors()}
        return [f"{name} has changed since the result was made" for name in sorted(names)]
    now = config.model_dump(mode="json")
    return differences(saved, now) + [
        f"run.{key} was {saved['run'][key]!r}, is now {now['run'][key]!r}"
        for key in _RECORDED
        if saved["run"][key] != now["run"][key]
    ]


def _summary(folder: RunFolder) -> Dict[str, Any]:
    """Return the run's summary, with its command as anyone may type it: without the grid's own folder."""
    summary: Dict[str, Any] = parse_json(read_bounded(folder.summary, MAX_RECORD_BYTES))
    words = [word for word in shlex.split(summary["command"]) if word != "--resume"]
    if "--output-dir" in words:
        place = words.index("--output-dir")
        del words[place : place + 2]
    return {**summary, "command": shlex.join(words)}


def last_epoch_loss(records: List[Dict[str, Any]], epochs: int) -> Optional[float]:
    """Return the mean training loss of the last epoch; None where the run did not get there, or diverged."""
    steps, total, before = 0, 0.0, 0
    for record in records:
        if record["split"] != "train":
            continue
        count, before = record["step"] - before, record["step"]
        if record["epoch"] > epochs - 1:
            if record["loss"] is None:
                return None
            steps, total = steps + count, total + count * record["loss"]
    return total / steps if steps else None
