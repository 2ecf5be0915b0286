"""The JSON files that benchmarks write, and what they say about the machine; without dates."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def machine_class() -> str:
    """Cores and vector instructions, which is what ratios depend on."""
    words = [f"{os.cpu_count()} cores"]
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    words.append("AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2")
    has_bfloat16 = {"avx512_bf16", "amx_bf16"} & flags
    words.append("bfloat16 instructions" if has_bfloat16 else "no bfloat16 instructions")
    return ", ".join(words)


def commit() -> str:
    """The commit that was measured, and whether files differed from it."""
    try:
        name = _git("rev-parse", "--short", "HEAD")
        return name + (" with changes" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _name(row: Dict[str, Any]) -> str:
    return str(next(iter(row.values())))


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


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
    measured = commit()
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
