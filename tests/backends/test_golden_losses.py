"""The losses of a run, kept: another machine, another torch or a change that should change nothing give them again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Dict, List

import pytest

import train

GOLDEN = Path(__file__).with_name("golden_losses.json")
# Ten updates, an epoch each.
ARGUMENTS = ["--config", "generated_smoke", "--device", "cpu", "--set", "data.num_train_images=64"]
ARGUMENTS += ["--set", "data.num_eval_images=50", "--set", "schedule.epochs=10", "--set", "schedule.warmup_epochs=0"]
# Kernels, orders of summation and instructions differ between machines and versions. Fused kernels and reference, one
# thread and two, one micro-batch and four are 2e-7 of a loss apart after ten updates; a hundred times that is granted.
TOLERANCE = 2e-5


def losses(folder: Path, *options: str) -> Dict[str, List[float]]:
    assert train.main([*ARGUMENTS, "--output-dir", str(folder), *options]) == 0
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {split: [record["loss"] for record in records if record["split"] == split] for split in ("train", "eval")}


@pytest.mark.parametrize("kernel", ["auto", "reference"])
def test_the_first_ten_losses_are_those_on_file(tmp_path: Path, kernel: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    found = losses(tmp_path / "run", "--set", f"norm.kernel={kernel}")
    assert len(found["train"]) == len(found["eval"]) == 10
    for split, expected in golden.items():
        assert found[split] == pytest.approx(expected, rel=TOLERANCE), split
