"""Runs as real processes, and what can be seen of them from outside: what the tests of faults and kills.py share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import torch

import train
from experiment.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--config", "generated_smoke", "--device", "cpu"]
SMALL += ["--set", "data.num_train_images=256", "--set", "data.num_eval_images=101", "--set", "schedule.epochs=2"]
SMALL += ["--set", "run.checkpoint_every_steps=3"]  # 4 steps an epoch: checkpoints at 3, 4, 6 and 8
PYTHON = [sys.executable]
TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def run(folder: Path, *arguments: str) -> int:
    """Return a small run in this process: its exit code."""
    return train.main([*SMALL, "--output-dir", str(folder), *arguments])


def start(folder: Path, *arguments: str, launcher: List[str], **environment: str) -> "subprocess.Popen[str]":
    """Return a small run in a process of its own; what it prints is in one stream."""
    command = [*launcher, str(ROOT / "train.py"), *SMALL, "--output-dir", str(folder), *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment},
    )


def wait_until(is_so: Callable[[], Any], seconds: float = 600) -> Any:
    """Return what `is_so` gives once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = is_so()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"nothing happened in {seconds} seconds")


def children(process: int) -> List[int]:
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


def process_of(launcher: int, rank: int) -> int:
    """Return the process that torchrun started as this one."""
    variables = {child: Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children(launcher)}
    return next(child for child, values in variables.items() if f"RANK={rank}".encode() in values)


def is_alive(process: int) -> bool:
    """Whether it runs, and not merely waits for its end to be noticed."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def status(folder: Path) -> Dict[str, Any]:
    content: Dict[str, Any] = json.loads((folder / "status.json").read_text())
    return content


def records(folder: Path, split: str) -> int:
    """Return the lines of metrics.jsonl of this split."""
    path = folder / "metrics.jsonl"
    return path.read_text().count(f'"split": "{split}"') if path.exists() else 0


def rows(folder: Path) -> List[Dict[str, Any]]:
    """Return the metric records without their timings."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "images_per_second"} for record in found]


def newest_step(folder: Path) -> int:
    """Return the last step whose checkpoint is complete; 0 without one."""
    return max((int(path.stem[5:]) for path in (folder / "checkpoints").glob("step_*.json")), default=0)


def final(folder: Path, step: int = 8) -> Dict[str, Any]:
    return load_checkpoint(folder / "checkpoints" / f"step_{step:08d}.pt")


def flat(value: Any, prefix: str = "") -> Dict[str, Any]:
    if isinstance(value, dict):
        return {name: item for key in value for name, item in flat(value[key], f"{prefix}.{key}").items()}
    if isinstance(value, list):
        return {
            name: item for index, entry in enumerate(value) for name, item in flat(entry, f"{prefix}[{index}]").items()
        }
    return {prefix: value}


def assert_equal_weights(left: Dict[str, Any], right: Dict[str, Any]) -> None:
    """Weights, optimizer state and averaged weights are the same to the bit."""
    for part in ("model", "optimizer", "average"):
        one, two = flat(left[part]), flat(right[part])
        assert one.keys() == two.keys(), part
        for name, value in one.items():
            other = two[name]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, f"{part}: {name}"


def assert_same_result(first: Path, second: Path, step: int = 8) -> None:
    """Check that two finished runs are the same to the bit, records too."""
    assert_equal_weights(final(first, step), final(second, step))
    assert rows(first) == rows(second)
