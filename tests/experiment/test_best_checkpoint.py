"""The best checkpoint: chosen on images held out of training, kept beside the newest, through stops and damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest
import torch
from test_checkpoint import make_state

import evaluate
import train
from experiment.checkpoint import best_checkpoint, load_checkpoint, save_checkpoint
from experiment.progress import Progress
from training.metrics import Means
from training.weights import CheckpointError

# 6 epochs of 3 steps. A learning rate at which the validation accuracy rises and falls.
SETTINGS = ["data.num_train_images=256", "data.num_eval_images=64", "data.validation_images=60", "schedule.epochs=6"]
SETTINGS += ["schedule.name=constant", "optimizer.learning_rate=1.5", "run.eval_every_epochs=2"]
SETTINGS += ["run.keep_checkpoints=2"]


def run(folder: Path, *arguments: str) -> int:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return train.main(
        ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(folder), *settings, *arguments]
    )


def rows(folder: Path) -> List[Dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key != "images_per_second"} for record in records]


def summary(folder: Path) -> Dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def kept(folder: Path) -> List[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("*.pt"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("best") / "whole"
    assert run(folder) == 0
    return folder


def test_every_epoch_is_validated_and_the_best_by_it_is_kept_and_named(whole: Path) -> None:
    validated = [row for row in rows(whole) if row["split"] == "validation"]
    assert [row["step"] for row in validated] == [3, 6, 9, 12, 15, 18]
    evaluated = {row["step"]: row for row in rows(whole) if row["split"] == "eval"}
    assert list(evaluated) == [6, 12, 18]
    best = max(validated, key=lambda row: (row["top1"], -row["loss"]))  # the first of equal ones
    found = summary(whole)["best"]
    assert found["step"] == best["step"] and found["epoch"] == best["epoch"]
    assert found["validation"] == {key: best[key] for key in ("loss", "top1", "top5")}
    at_best = evaluated.get(best["step"])
    assert found["evaluation"] == (None if at_best is None else {key: at_best[key] for key in ("loss", "top1", "top5")})
    assert (whole / found["checkpoint"]).exists()
    assert kept(whole) == sorted({"step_00000015.pt", "step_00000018.pt", f"step_{best['step']:08d}.pt"})
    assert best["step"] < 15, "the settings are to put the best epoch before the newest two, or the test shows nothing"


@pytest.mark.parametrize("is_before_best", [True, False])
def test_a_stopped_run_continues_with_the_same_best_and_the_same_bits(
    whole: Path, tmp_path: Path, is_before_best: bool
) -> None:
    full = tmp_path / "full"
    assert run(full, "--set", "run.keep_checkpoints=9", "--set", "run.checkpoint_every_steps=2") == 0
    step = 2 if is_before_best else 16
    resumed = tmp_path / "resumed"
    (resumed / "checkpoints").mkdir(parents=True)
    best = summary(whole)["best"]["step"]
    for path in (full / "checkpoints").iterdir():
        number = int(path.stem.split("_")[1])
        if number == step or (not is_before_best and number == best):
            shutil.copy(path, resumed / "checkpoints")
    shutil.copy(full / "metrics.jsonl", resumed)
    assert run(resumed, "--resume") == 0
    assert rows(resumed) == rows(full)
    assert summary(resumed)["best"] == summary(whole)["best"]
    chosen = best_checkpoint(resumed / "checkpoints")
    assert chosen is not None and chosen.name == f"step_{best:08d}.pt"
    model, other = (load_checkpoint(path)["model"] for path in (chosen, whole / summary(whole)["best"]["checkpoint"]))
    assert all(torch.equal(tensor, other[name]) for name, tensor in model.items())


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> Dict[str, Any]:
    capsys.readouterr()
    assert evaluate.main(list(arguments)) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluate_takes_and_names_the_best_checkpoint(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = summary(whole)["best"]
    report = evaluated(capsys, str(whole), "--checkpoint", "best", "--split", "validation")
    assert (report["checkpoint"], report["step"], report["weights"]) == (
        Path(best["checkpoint"]).name,
        best["step"],
        "last",
    )
    assert report["images"] == 60 and report["top1"] == best["validation"]["top1"]
    newest = evaluated(capsys, str(whole))
    assert newest["step"] == 18 and newest["top1"] == summary(whole)["top1"]


def test_evaluate_refuses_choices_that_are_not_there(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = str(whole / "checkpoints" / "step_00000018.pt")
    assert evaluate.main([str(whole), "--weights", "average"]) == 4
    assert "holds no average of its weights" in capsys.readouterr().err
    assert evaluate.main([checkpoint, "--checkpoint", "best"]) == 4
    assert "is a file, and only run folders have a best checkpoint" in capsys.readouterr().err
    assert evaluate.main([str(whole), "--split", "validation", "--set", "data.validation_images=null"]) == 2
    assert "no images were held out" in capsys.readouterr().err


def save_all(folder: Path, bests: List[Optional[int]]) -> None:
    for step, best in enumerate(bests, start=1):
        save_checkpoint(folder, make_state(step), step, 2, best)


@pytest.mark.parametrize(
    ("bests", "steps"),
    [
        ([None, None, None, None], [3, 4]),
        ([1, 1, 1, 1], [1, 3, 4]),
        ([1, 1, 1, 4], [1, 3, 4]),  # a run that has to continue from 3, since 4 is damaged, has its best
        ([1, 1, 1, 4, 4], [4, 5]),
        ([1, 2, 2, 2, 2, 2], [2, 5, 6]),
    ],
)
def test_the_best_of_each_kept_checkpoint_is_kept(tmp_path: Path, bests: List[Optional[int]], steps: List[int]) -> None:
    save_all(tmp_path, bests)
    assert sorted(int(path.stem[5:]) for path in tmp_path.glob("*.pt")) == steps


def test_with_the_newest_damaged_the_best_is_that_of_the_one_before(tmp_path: Path) -> None:
    save_all(tmp_path, [1, 1, 1, 4])
    (tmp_path / "step_00000004.pt").write_bytes(b"torn")
    found = best_checkpoint(tmp_path)
    assert found is not None and found.name == "step_00000001.pt"
    (tmp_path / "step_00000001.pt").write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"step_00000001.pt has 4 bytes"):
        best_checkpoint(tmp_path)


def test_equal_accuracy_is_decided_by_loss_and_then_by_order() -> None:
    progress = Progress()
    figures: List[Tuple[float, float]] = [(0.5, 1.0), (0.5, 0.9), (0.5, 0.9), (0.4, 0.1)]
    for epoch, (top1, loss) in enumerate(figures, start=1):
        progress.step = epoch
        progress.add_evaluations(epoch, Means(loss, top1, 1.0), None)
    assert progress.best is not None and progress.best.step == 2
    assert Progress.from_state(progress.state()).best == progress.best
