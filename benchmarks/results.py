"""The JSON files that benchmarks write, and what they say about the machine; without dates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

from backends.machine import machine_class
from experiment.provenance import ROOT, commit

RESULTS = ROOT / "benchmarks" / "results"


def _name(row: Dict[str, Any]) -> str:
    return str(next(iter(row.values())))


def write_results(
    name: str,
    settings: Dict[str, Any],
    rows: List[Dict[str, Any]],
    *,
    folder: Path = RESULTS,
    device: Optional[str] = None,
) -> Path:
    """Write one benchmark's file. Rows of other names stay where the file's machine and settings are the same.

    Args:
        name: of the benchmark; the file is NAME.json.
        settings: what was measured, as far as the rows do not say.
        rows: the numbers; the first field of each is its name.
        folder: where the file goes.
        device: what was measured where it is not the CPU.
    """
    machine = {
        "machine_class": device or machine_class(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
    }
    measured = commit() or "unknown"
    rows = [{**row, "commit": measured} for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    if path.exists():
        old = json.loads(path.read_text())
        if (old["machine"], old["settings"]) == (machine, settings):
            new_names = [_name(row) for row in rows]
            rows = sorted([row for row in old["rows"] if _name(row) not in new_names] + rows, key=_name)
    path.write_text(json.dumps({"machine": machine, "settings": settings, "rows": rows}, indent=1) + "\n")
    return path
