"""A run that goes on for more epochs than it was to have: when asked, told, and recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch

import train
from experiment.checkpoint import load_checkpoint

SMALL = ["--config", "generated_smoke", "--device", "cpu"]
for setting in ("data.num_train_images=128", "data.num_eval_images=20", "run.evaluate_training_images=0"):
    SMALL += ["--set", setting]
SMALL += ["--set", "run.log_every_steps=1"]  # 2 steps an epoch


def run(folder: Path, epochs: int, *arguments: str, schedule: str = "cosine") -> int:
    chosen = ["--set", f"schedule.epochs={epochs}", "--set", f"schedule.name={schedule}"]
    return train.main([*SMALL, *chosen, "--output-dir", str(folder), *arguments])


def rates(folder: Path) -> List[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["learning_rate"] for record in records if record["split"] == "train"]


def summary(folder: Path) -> Dict[str, Any]:
    found: Dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def final(folder: Path, step: int) -> Dict[str, Any]:
    return load_checkpoint(folder / "checkpoints" / f"step_{step:08d}.pt")


def test_more_epochs_are_refused_where_they_are_not_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, 1) == 0
    assert run(tmp_path, 2, "--resume") == 4
    assert "schedule.epochs was 1, is now 2. To train longer add --extend-epochs" in capsys.readouterr().err
    assert summary(tmp_path)["epochs"] == 1
    assert run(tmp_path, 2, "--extend-epochs") == 2
    assert "add --resume, or leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["optimizer.weight_decay=0.0", "run.seed=3"])
def test_nothing_else_may_change_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str) -> None:
    assert run(tmp_path, 1) == 0
    assert run(tmp_path, 2, "--resume", "--extend-epochs", "--set", other) == 4
    assert f"was written by another experiment: {other.partition('=')[0]} was" in capsys.readouterr().err


def test_epochs_cannot_become_fewer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, 2) == 0
    assert run(tmp_path, 1, "--resume", "--extend-epochs") == 4
    told = "schedule.epochs was 2, is now 1. --extend-epochs makes a run longer, never shorter: give 2 or more"
    assert told in capsys.readouterr().err


def test_with_a_constant_learning_rate_the_result_is_that_of_the_longer_run_to_the_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "straight", 3, schedule="constant") == 0
    assert run(tmp_path / "longer", 1, schedule="constant") == 0
    capsys.readouterr()
    assert run(tmp_path / "longer", 3, "--resume", "--extend-epochs", schedule="constant") == 0
    told = "schedule.epochs was 1, is now 3: the learning rates so far are those of 3 epochs, and so is the result"
    assert told in capsys.readouterr().out
    straight, longer = final(tmp_path / "straight", 6), final(tmp_path / "longer", 6)
    for name, tensor in straight["model"].items():
        assert torch.equal(tensor, longer["model"][name]), name
    assert rates(tmp_path / "longer") == rates(tmp_path / "straight")


def test_with_a_cosine_the_change_is_told_and_recorded_and_the_shorter_result_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "straight", 4) == 0
    folder = tmp_path / "longer"
    assert run(folder, 2) == 0
    shorter = rates(folder)
    capsys.readouterr()
    assert run(folder, 4, "--resume", "--extend-epochs") == 0
    told = capsys.readouterr().out
    assert "schedule.epochs was 2, is now 4: from step 4 on learning rates are those of 4 epochs" in told
    assert "The result is not that of 4 epochs from the beginning" in told
    assert rates(folder) == shorter + rates(tmp_path / "straight")[4:]
    assert summary(folder)["extended"] == [{"epochs": 2, "step": 4}] and summary(folder)["epochs"] == 4
    assert json.loads((folder / "summary_of_2_epochs.json").read_text())["epochs"] == 2
    assert "extended" not in summary(tmp_path / "straight")
    assert run(folder, 4, "--resume") == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_longer_run_that_is_stopped_and_continued_still_says_so(tmp_path: Path) -> None:
    assert run(tmp_path, 1) == 0
    assert run(tmp_path, 2, "--resume", "--extend-epochs") == 0
    assert run(tmp_path, 3, "--resume", "--extend-epochs") == 0
    assert summary(tmp_path)["extended"] == [{"epochs": 1, "step": 2}, {"epochs": 2, "step": 4}]
