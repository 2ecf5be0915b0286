"""Several runs of the benchmarks as one: of each number the worst, so that no table shows a lucky run.

    python -m benchmarks.worst RESULTS/run1 RESULTS/run2 RESULTS/run3 --out RESULTS

Times, bytes and ratios to batch norm: the largest. Rates, speeds and shares of a bandwidth: the smallest. Quartiles:
the widest. Everything else (names, shapes, settings, the machine, the commit) must be the same in all runs.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

LARGEST = (
    "milliseconds", "ratio", "third_quartile", "geometric_mean", "proxy_statistics_us", "norm_overhead",
    "activation_bytes", "weight_copy_bytes", "activation_ratio", "total_ratio", "saved_bytes", "exponents",
)  # fmt: skip
SMALLEST = (
    "copy_bandwidth_share", "first_quartile", "images_per_second", "speed_ratio", "thread_ratio",
    "loader_alone", "network_alone", "together",
)  # fmt: skip


class DifferentRunsError(Exception):
    """Runs that cannot be one: they measured different things, or on different machines."""


def worst(runs: Sequence[Any], field: str = "") -> Any:
    """Of each number in equally formed JSON values the worst.

    Args:
        runs: the same value of each run.
        field: the innermost field of an object it is in whose name is in LARGEST or SMALLEST; else the innermost.

    Raises:
        DifferentRunsError: the form, or a value that is not measured, differs.
    """
    first = runs[0]
    if isinstance(first, dict) and all(isinstance(run, dict) and run.keys() == first.keys() for run in runs):
        return {name: worst([run[name] for run in runs], _field(field, name)) for name in first}
    if isinstance(first, list) and all(isinstance(run, list) and len(run) == len(first) for run in runs):
        return [worst(values, field) for values in zip(*runs)]
    if field in LARGEST + SMALLEST and all(isinstance(run, (int, float)) for run in runs):
        return max(runs) if field in LARGEST else min(runs)
    if any(run != first for run in runs):
        raise DifferentRunsError(
            f"{field}: {' and '.join(repr(run) for run in runs)}; measure them again on one machine"
        )
    return first


def _field(outer: str, name: str) -> str:
    """Numbers by variant, as {"ratio": {"batch norm": 1.0}}, are of the field around them."""
    return name if name in LARGEST + SMALLEST or outer not in LARGEST + SMALLEST else outer


def combine(folders: Sequence[Path], out: Path) -> List[Path]:
    """Write one file for each name that every folder has, with the number of runs in it.

    Raises:
        DifferentRunsError: the folders have different files, or see `worst`.
    """
    names = {folder: {path.name for path in folder.glob("*.json")} for folder in folders}
    if len({frozenset(found) for found in names.values()}) != 1 or not names[folders[0]]:
        found = "; ".join(f"{folder}: {', '.join(sorted(names[folder])) or 'none'}" for folder in folders)
        raise DifferentRunsError(f"the runs have different result files ({found}); complete them")
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name in sorted(names[folders[0]]):
        runs: List[Dict[str, Any]] = [json.loads((folder / name).read_text()) for folder in folders]
        try:
            result = {**worst(runs), "runs": len(runs)}
        except DifferentRunsError as error:
            raise DifferentRunsError(f"{name}: {error}") from error
        written.append(out / name)
        written[-1].write_text(json.dumps(result, indent=1) + "\n")
    return written


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of JSON files, one a run")
    parser.add_argument("--out", type=Path, required=True, help="folder of the combined files")
    options = parser.parse_args(arguments)
    for path in combine(options.runs, options.out):
        print(path)


if __name__ == "__main__":
    main()
