"""Run folders and result files of grids with given numbers, for tests of what reads them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

import yaml

CONFIG: Dict[str, Dict[str, Any]] = {
    "model": {"name": "resnet8", "width": 8},
    "norm": {"name": "group", "proxy": False, "num_groups": 8},
    "batch": {"global_batch_size": 64, "norm_batch_size": 1},
    "optimizer": {"name": "sgd", "learning_rate": 0.1},
    "run": {"seed": 0, "output_dir": None},
}


def config_with(seed: int, **settings: Any) -> Dict[str, Dict[str, Any]]:
    """CONFIG of a seed; settings as norm__name="batch"."""
    config = copy.deepcopy(CONFIG)
    config["run"]["seed"] = seed
    for key, value in settings.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return config


def evaluations(*top1: float) -> Sequence[Dict[str, Any]]:
    """Return one evaluation record for each epoch."""
    return [{"split": "eval", "step": 8 * n, "epoch": n, "loss": 2 - t, "top1": t} for n, t in enumerate(top1, start=1)]


def power_record(*p1: float) -> Dict[str, Any]:
    """Return a record of power.jsonl: one layer for each P1, the rest of its power in P3."""
    layers = [{"name": f"norm{n}", "channels": 8, "power": [value, 0.0, 1 - value, 0.0]} for n, value in enumerate(p1)]
    return {"split": "power", "step": 8, "epoch": 1, "images": 10, "layers": layers}


def write_run(
    folder: Path, seed: int, top1: Optional[float], *, power: Sequence[float] = (), summary: Any = None, **settings: Any
) -> Path:
    """Return a run folder; one of a diverged run where top1 is None."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config_with(seed, **settings), sort_keys=False))
    records = evaluations(0.1, top1 or 0.0)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if power:
        (folder / "power.jsonl").write_text(json.dumps(power_record(*power)) + "\n")
    if top1 is None:
        status = {"state": "failed", "reason": "loss nan", "exit_code": 5, "step": 3}
        (folder / "status.json").write_text(json.dumps(status))
    else:
        values = {"top1": top1, "loss": 2 - top1, "images_per_second": 100.0, "device": "cpu", **(summary or {})}
        (folder / "summary.json").write_text(json.dumps(values))
    return folder


def write_result(
    folder: Path,
    row: str,
    seed: int,
    top1: Optional[float],
    *,
    column: Optional[str] = None,
    summary: Any = None,
    **settings: Any,
) -> Path:
    """Return a result file of a grid; one of a diverged run where top1 is None."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{row if column is None else f'{row}.{column}'}.seed{seed}.json"
    values = None if top1 is None else {"top1": top1, "loss": 2 - top1, "images_per_second": 100.0, **(summary or {})}
    document = {
        "grid": "made",
        "row": row,
        "column": column,
        "seed": seed,
        "summary": values,
        "evaluations": evaluations(0.1, top1 or 0.0),
        "power": [],
        "config": config_with(seed, **settings),
    }
    path.write_text(json.dumps(document))
    return path
