"""What a finished run has to say, from its folder or from the JSON file that a grid keeps of it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

from analysis.curves import read_records
from analysis.results_file import ResultsError, read_results
from analysis.settings import Settings, flat_settings, read_settings
from configs.exit_codes import NONFINITE

Figures = Mapping[str, Optional[float]]
Layers = Tuple[Mapping[str, Any], ...]
# Name of a figure -> where a summary has it. Accuracies are fractions. An older run, or a norm without running
# statistics to estimate again, lacks some.
FIGURES: Dict[str, Tuple[str, ...]] = {
    "top1": ("top1",),
    "top5": ("top5",),
    "loss": ("loss",),
    "train_top1": ("train", "top1"),
    "train_loss": ("train", "loss"),
    "reestimated_top1": ("test_reestimated", "top1"),
    "reestimated_loss": ("test_reestimated", "loss"),
    "images_per_second": ("images_per_second",),
}
_ABSENT = object()
_DIGITS = re.compile(r"(\d+)")  # bn8 before bn16
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
        figures: of FIGURES, those that the run has; none where it diverged.
        records: of metrics.jsonl, or its evaluations, each with split, epoch, loss and top1.
        power: of the last record of power.jsonl, name and power [P1, P2, P3, P4] of each layer.
        origin: versions, commit, machine and the like, to print.
    """

    source: Path
    row: str
    column: str
    seed: int
    settings: Settings
    figures: Figures
    records: Tuple[Mapping[str, Any], ...] = ()
    power: Layers = ()
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def diverged(self) -> bool:
        """Its loss was not finite, so that it ended without a summary."""
        return not self.figures


def load_results(paths: Iterable[Path]) -> List[RunResult]:
    """Return the runs at `paths`, in their order: run folders, result files of a grid, or folders of either.

    Raises:
        ResultsError: a path that is none of these, a run that is not finished, and what cannot be read.
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


def is_empty(path: Path) -> bool:
    """Whether no run is at `path` yet: no such folder, or one of a grid whose learning rates alone were checked."""
    return not path.exists() or (path.is_dir() and not _runs_in(path))


def _sources(path: Path) -> List[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ResultsError(f"{path}: no such run folder, result file or folder of them")
    files = _runs_in(path)
    if not files:
        raise ResultsError(
            f"{path} is not a run folder (it has no config.yaml) and holds neither result files (ROW.seedN.json) "
            "nor run folders"
        )
    return files


def _runs_in(folder: Path) -> List[Path]:
    """Return the folder itself where it is a run's, else its result files, else its run folders, in natural order."""
    if (folder / "config.yaml").exists():
        return [folder]
    files = list(folder.glob("*.seed*.json")) or [config.parent for config in folder.glob("*/config.yaml")]
    return sorted(files, key=lambda file: [int(part) if part.isdigit() else part for part in _DIGITS.split(file.name)])


def _from_folder(folder: Path) -> RunResult:
    settings = read_settings(folder / "config.yaml")
    summary = _summary_of(folder)
    metrics, power = folder / "metrics.jsonl", folder / "power.jsonl"
    return RunResult(
        source=folder,
        row=_text(summary.get("experiment", ""), "experiment", folder / "summary.json"),
        column="",
        seed=_seed(settings.get("run.seed"), folder / "config.yaml"),
        settings=settings,
        figures=_figures(summary, folder / "summary.json"),
        records=_records(read_records(metrics) if metrics.exists() else [], metrics),
        power=_last_layers(read_records(power) if power.exists() else [], power),
        origin=_origin(summary),
    )


def _summary_of(folder: Path) -> Dict[str, Any]:
    """Return the summary of a finished run; {} for one that diverged."""
    if (folder / "summary.json").exists():
        return read_results(folder / "summary.json")
    status = read_results(folder / "status.json") if (folder / "status.json").exists() else {}
    if status.get("exit_code") == NONFINITE:  # a result too, without figures
        return {}
    state = f"{status.get('state', 'it has no summary.json')}, {status.get('reason', 'and no status.json')}"
    raise ResultsError(f"{folder} is not finished: {state}; finish it with --resume, or leave it out")


def _from_file(path: Path) -> RunResult:
    document = read_results(path)
    absent = [key for key in ("row", "seed", "config", "summary") if key not in document]
    if absent:
        raise ResultsError(f"{path} is not a result of a grid run: it has no {', '.join(absent)}")
    summary = {} if document["summary"] is None else document["summary"]
    if not isinstance(summary, dict):
        raise ResultsError(f"{path}: summary {summary!r} is not an object of names and numbers")
    return RunResult(
        source=path,
        row=_text(document["row"], "row", path),
        column=_text(document.get("column") or "", "column", path),
        seed=_seed(document["seed"], path),
        settings=flat_settings(document["config"], path),
        figures=_figures(summary, path),
        records=_records(document.get("evaluations", []), path),
        power=_last_layers(document.get("power", []), path),
        origin=_origin(summary),
    )


def _seed(value: Any, path: Path) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ResultsError(f"{path}: seed {value!r} is not a whole number of 0 or more")
    return value


def _text(value: Any, key: str, path: Path) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ResultsError(f"{path}: {key} {value!r} is not one line of text")
    return value


def _figures(summary: Mapping[str, Any], path: Path) -> Dict[str, Optional[float]]:
    figures: Dict[str, Optional[float]] = {}
    for name, keys in FIGURES.items():
        value: Any = summary
        for key in keys:
            value = value.get(key, _ABSENT) if isinstance(value, Mapping) else _ABSENT
        if value is not _ABSENT:
            figures[name] = _number(value, name, path)
    if summary and "top1" not in figures:
        raise ResultsError(f"{path}: it has no top1; it has {', '.join(summary)}")
    for name, number in figures.items():
        if "top" in name and (number is None or not 0 <= number <= 1):
            raise ResultsError(f"{path}: {name} {number} is not a fraction between 0 and 1")
    return figures


def _number(value: Any, name: str, path: Path) -> Optional[float]:
    """Return a number, or None for one that was not finite: a run writes null."""
    if value is None:
        return None
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        pass
    raise ResultsError(f"{path}: {name} {value!r} is not a number")


def _records(values: Any, path: Path) -> Tuple[Mapping[str, Any], ...]:
    if not isinstance(values, list):
        raise ResultsError(f"{path}: records are not a list")
    for number, record in enumerate(values, start=1):
        if not isinstance(record, dict) or any(key not in record for key in _RECORDS):
            raise ResultsError(f"{path}, record {number} lacks some of {', '.join(_RECORDS)}")
        for key in _RECORDS[1:]:
            _number(record[key], key, path)
    return tuple(values)


def _last_layers(records: Any, path: Path) -> Layers:
    """Return the layers of the last power record; () without one."""
    if not isinstance(records, list):
        raise ResultsError(f"{path}: power records are not a list")
    if not records:
        return ()
    layers = records[-1].get("layers") if isinstance(records[-1], dict) else None
    if not isinstance(layers, list) or not layers:
        raise ResultsError(f"{path}: the last power record has no layers")
    for layer in layers:
        powers = layer.get("power") if isinstance(layer, dict) else None
        if not isinstance(powers, list) or len(powers) != 4 or not isinstance(layer.get("name"), str):
            raise ResultsError(f"{path}: a layer of a power record has no name and power [P1, P2, P3, P4]")
        for power in powers:
            if _number(power, "power", path) is None:
                raise ResultsError(f"{path}: the power of {layer['name']} is not finite")
    return tuple(layers)


def _origin(document: Mapping[str, Any]) -> Dict[str, str]:
    """Return what says where the numbers come from, flattened: versions of packages, commit, machine."""
    origin: Dict[str, str] = {}
    for key in ("commit", "machine", "threads", "device", "versions"):
        value = document.get(key)
        if isinstance(value, dict):
            origin.update({f"{key} {name}": str(item) for name, item in value.items()})
        elif value is not None:
            origin[key] = str(value)
    return origin
