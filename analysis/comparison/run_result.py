"""What a finished run has to say, from its folder or from the JSON file that a grid keeps of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

from analysis.curves import read_records
from analysis.results_file import ResultsError
from configs import ConfigError
from configs.yaml_file import read_yaml

Figures = Mapping[str, Optional[float]]
Layers = Tuple[Mapping[str, Any], ...]
# The figures of a run; fractions for accuracies. What a norm or an older run has not is left out; null: not finite.
FIGURES = (
    "top1",
    "top5",
    "loss",
    "train_top1",
    "train_top5",
    "train_loss",
    "reestimated_top1",
    "reestimated_top5",
    "reestimated_loss",
    "images_per_second",
)
_RECORDS = ("split", "epoch", "loss", "top1")


@dataclass(frozen=True)
class RunResult:
    """One finished run, at its last epoch.

    Args:
        source: the run's folder or the result file.
        row: the row of a grid, or the name of the experiment, or "" where none is known.
        column: the column of a grid, or "".
        seed: of weights, order and augmentation; runs of different rows are paired by it.
        settings: the complete configuration, "section.key" to value.
        figures: of FIGURES, those that the run has.
        records: of metrics.jsonl, each with split, epoch, loss and top1.
        power: of the last record of power.jsonl, name and power [P1, P2, P3, P4] of each layer.
        origin: versions, commit, machine and the like, for people.
    """

    source: Path
    row: str
    column: str
    seed: int
    settings: Mapping[str, Any]
    figures: Figures
    records: Tuple[Mapping[str, Any], ...] = ()
    power: Layers = ()
    origin: Mapping[str, str] = field(default_factory=dict)


def load_results(paths: Iterable[Path]) -> List[RunResult]:
    """The runs at `paths`, in their order: run folders, result files, folders of result files or of run folders.

    Raises: ResultsError for a path that is none of these, a run that is not finished, and what cannot be read.
    """
    results: List[RunResult] = []
    seen: Dict[Path, Path] = {}
    for path in paths:
        for source in _sources(path):
            real = source.resolve()
            if real in seen:
                raise ResultsError(f"{source} is named twice ({seen[real]} too); name each run once")
            seen[real] = source
            results.append(_from_folder(source) if source.is_dir() else _from_file(source))
    return results


def _sources(path: Path) -> List[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ResultsError(f"{path}: no such run folder, result file or folder of them")
    if (path / "config.yaml").exists():
        return [path]
    files = sorted(path.glob("*.seed*.json")) or sorted(folder.parent for folder in path.glob("*/config.yaml"))
    if not files:
        raise ResultsError(
            f"{path} is no run folder (it has no config.yaml) and holds neither result files (ROW.seedN.json) nor run "
            "folders"
        )
    return files


def _from_folder(folder: Path) -> RunResult:
    try:
        config, _ = read_yaml(folder / "config.yaml")
    except ConfigError as error:
        raise ResultsError(f"{folder} has a config.yaml that cannot be read: {error}") from error
    summary_path = folder / "summary.json"
    if not summary_path.exists():
        raise ResultsError(f"{folder} is not finished: {_state(folder)}; finish it with --resume, or leave it out")
    summary = _read_object(summary_path)
    settings = _flat_settings(config, folder / "config.yaml")
    power = read_records(folder / "power.jsonl") if (folder / "power.jsonl").exists() else []
    return RunResult(
        source=folder,
        row=_text(summary.get("experiment", ""), "experiment", summary_path),
        column="",
        seed=_seed(settings.get("run.seed"), folder / "config.yaml"),
        settings=settings,
        figures=_figures(summary, summary_path),
        records=_records(read_records(folder / "metrics.jsonl"), folder / "metrics.jsonl"),
        power=_layers(power[-1], folder / "power.jsonl") if power else (),
        origin=_origin(summary),
    )


def _state(folder: Path) -> str:
    """What status.json says of a run without a summary."""
    status = _read_object(folder / "status.json") if (folder / "status.json").exists() else {}
    return f"{status.get('state', 'no summary.json')}, {status.get('reason', 'and no status.json')}"


def _from_file(path: Path) -> RunResult:
    document = _read_object(path)
    for key in ("row", "seed", "config", "figures"):
        if key not in document:
            raise ResultsError(f"{path} is no result of a run: it has no {key!r}; see docs/analysis.md for its form")
    records = document.get("records", [])
    return RunResult(
        source=path,
        row=_text(document["row"], "row", path),
        column=_text(document.get("column") or "", "column", path),
        seed=_seed(document["seed"], path),
        settings=_flat_settings(document["config"], path),
        figures=_figures(document["figures"], path),
        records=_records(records, path),
        power=_layers(document["power"], path) if document.get("power") else (),
        origin=_origin(document),
    )


def _read_object(path: Path) -> Dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ResultsError(f"{path} holds {type(value).__name__}, expected one JSON object")
    return value


def _flat_settings(config: Any, path: Path) -> Dict[str, Any]:
    if not isinstance(config, dict) or not all(isinstance(section, dict) for section in config.values()):
        raise ResultsError(f"{path}: the configuration is not made of sections with keys")
    return {f"{section}.{key}": value for section, keys in config.items() for key, value in keys.items()}


def _seed(value: Any, path: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ResultsError(f"{path}: seed {value!r} is not a whole number of 0 or more")
    return value


def _text(value: Any, key: str, path: Path) -> str:
    if not isinstance(value, str):
        raise ResultsError(f"{path}: {key} {value!r} is not a text")
    return value


def _figures(values: Any, path: Path) -> Dict[str, Optional[float]]:
    if not isinstance(values, dict):
        raise ResultsError(f"{path}: figures {values!r} are not an object of names and numbers")
    figures = {name: _number(values[name], name, path) for name in FIGURES if name in values}
    if "top1" not in figures:
        raise ResultsError(f"{path}: it has no figure top1; it has {', '.join(values) or 'none'}")
    for name, value in figures.items():
        if "top" in name and (value is None or not 0 <= value <= 1):
            raise ResultsError(f"{path}: {name} {value} is no fraction of 0 to 1")
    return figures


def _number(value: Any, name: str, path: Path) -> Optional[float]:
    """A number, or None for one that was not finite: a run writes null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ResultsError(f"{path}: {name} {value!r} is no number")
    return float(value)


def _records(values: Any, path: Path) -> Tuple[Mapping[str, Any], ...]:
    if not isinstance(values, list):
        raise ResultsError(f"{path}: records are not a list")
    for number, record in enumerate(values, start=1):
        if not isinstance(record, dict) or any(key not in record for key in _RECORDS):
            raise ResultsError(f"{path}, record {number} has not all of {', '.join(_RECORDS)}")
        for key in _RECORDS[1:]:
            _number(record[key], key, path)
    return tuple(values)


def _layers(record: Any, path: Path) -> Layers:
    layers = record.get("layers") if isinstance(record, dict) else record
    if not isinstance(layers, list) or not layers:
        raise ResultsError(f"{path}: a power record has no layers")
    for layer in layers:
        powers = layer.get("power") if isinstance(layer, dict) else None
        if not isinstance(powers, list) or len(powers) != 4 or not isinstance(layer.get("name"), str):
            raise ResultsError(f"{path}: a layer of a power record has no name and power [P1, P2, P3, P4]")
        for power in powers:
            if _number(power, "power", path) is None:
                raise ResultsError(f"{path}: the power of {layer['name']} is not finite")
    return tuple(layers)


def _origin(document: Mapping[str, Any]) -> Dict[str, str]:
    """What says where the numbers come from, flattened: versions of packages, commit, machine."""
    origin: Dict[str, str] = {}
    for key in ("commit", "machine", "threads", "device", "versions"):
        value = document.get(key)
        if isinstance(value, dict):
            origin.update({f"{key} {name}": str(item) for name, item in value.items()})
        elif value is not None:
            origin[key] = str(value)
    return origin
