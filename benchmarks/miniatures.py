"""What the examples' norms reach over seeds: a table with intervals of the differences paired by seed.

    python -m benchmarks.miniatures federated --seeds 6 -- --fashion-mnist data/fashion-mnist
    python -m benchmarks.miniatures opacus_private --seeds 6 -- --fashion-mnist data/fashion-mnist

What stands after `--` goes to the example. Each finished seed is a line of the results file; the same command continues
after the last.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Dict, List, Optional, Sequence

from analysis.comparison.bootstrap import bca_interval, standard_deviation
from configs.bounded_file import parse_json, read_bounded

EXAMPLES = ("federated", "opacus_private")
_MAX_BYTES = 1 << 20


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("example", choices=EXAMPLES)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--results", type=Path, help="build/miniatures/EXAMPLE.jsonl by default")
    given = list(sys.argv[1:] if arguments is None else arguments)
    own, of_example = (given[: given.index("--")], given[given.index("--") + 1 :]) if "--" in given else (given, [])
    options = parser.parse_args(own)
    path: Path = options.results or Path("build/miniatures") / f"{options.example}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    top1 = _read(path, of_example)
    example = importlib.import_module(f"examples.{options.example}")
    with open(path, "a", encoding="utf-8") as file:
        for seed in range(options.seeds):
            if seed not in top1:
                found = example.main([*of_example, "--seeds", "1", "--first-seed", str(seed)])
                top1[seed] = {norm: values[0] for norm, values in found.items()}
                file.write(json.dumps({"seed": seed, "options": of_example, "top1": top1[seed]}) + "\n")
                file.flush()
    print(table([top1[seed] for seed in range(options.seeds)]))
    return 0


def _read(path: Path, options: List[str]) -> Dict[int, Dict[str, float]]:
    """Return top-1 by seed and norm, of the runs with these options."""
    if not path.exists():
        return {}
    rows = [parse_json(line) for line in read_bounded(path, _MAX_BYTES).splitlines()]
    return {row["seed"]: row["top1"] for row in rows if row["options"] == options}


def table(seeds: Sequence[Dict[str, float]]) -> str:
    """Markdown: top-1 of each norm, and its difference to the first, paired by seed, with the 95 % BCa interval."""
    first = next(iter(seeds[0]))
    lines = [f"| norm | top-1 (%), mean +- standard deviation | difference to {first} (points) |", "|---|---|---|"]
    for norm in seeds[0]:
        values = [100 * seed[norm] for seed in seeds]
        deviation = standard_deviation(values)
        spread = "" if deviation is None else f" +- {deviation:.2f}"
        cells = [norm, f"{sum(values) / len(values):.2f}{spread}", ""]
        if norm != first:
            differences = [100 * (seed[norm] - seed[first]) for seed in seeds]
            interval = bca_interval(differences)
            ends = interval.reason if interval.low is None else f"{interval.low:+.2f}, {interval.high:+.2f}"
            cells[2] = f"{sum(differences) / len(differences):+.2f} [{ends}]"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
