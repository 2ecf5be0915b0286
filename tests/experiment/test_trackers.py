"""TensorBoard's files and the CSV file hold what metrics.jsonl holds, through stops; a missing package is an error."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from experiment.csv_tracker import CsvTracker
from experiment.tracker import DispensableTracker, Trackers

SETTINGS = ["data.num_train_images=128", "data.num_eval_images=32", "data.validation_images=20", "schedule.epochs=2"]
SETTINGS += ["batch.global_batch_size=32", "run.log_every_steps=1", "run.checkpoint_every_steps=1"]
SETTINGS += ["run.keep_checkpoints=20", "run.power_every_epochs=1", "run.power_images=8"]
SETTINGS += ["run.evaluate_training_images=0", "run.tensorboard=true", "run.csv=true"]


def run(folder: Path, *arguments: str) -> int:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return train.main(
        ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(folder), *settings, *arguments]
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trackers") / "whole"
    assert run(folder) == 0
    return folder


def records(folder: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder: Path) -> Dict[str, List[Tuple[int, float]]]:
    """Return what TensorBoard's own reader finds: steps and values by tag."""
    accumulator = EventAccumulator(str(folder / "tensorboard"))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in tags}


def table(folder: Path) -> List[Dict[str, str]]:
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def assert_tracked(folder: Path) -> None:
    found, expected = events(folder), records(folder)
    for split in ("train", "validation", "eval"):
        for key in ("loss", "top1"):
            values = [(row["step"], row[key]) for row in expected if row["split"] == split]
            # TensorBoard keeps float32.
            assert found[f"{split}/{key}"] == [(step, pytest.approx(value, rel=1e-6)) for step, value in values]
    cells = [(row["split"], int(row["step"]), float(row["loss"])) for row in table(folder)]
    assert cells == [(row["split"], row["step"], row["loss"]) for row in expected]


def test_both_hold_every_record_and_tensorboard_every_layers_power(whole: Path) -> None:
    assert_tracked(whole)
    power = [json.loads(line) for line in (whole / "power.jsonl").read_text().splitlines()]
    name = power[0]["layers"][0]["name"]
    expected = [(row["step"], pytest.approx(row["layers"][0]["power"][0], rel=1e-6)) for row in power]
    assert [row["step"] for row in power] == [0, 3, 6] and events(whole)[f"power/{name}/P1"] == expected
    evaluation = next(row for row in table(whole) if row["split"] == "eval")
    assert evaluation["learning_rate"] == "" and float(evaluation["images_per_second"]) > 0


@pytest.mark.parametrize("step", [2, 3])
def test_a_resumed_run_leaves_no_gap_and_no_record_twice(whole: Path, tmp_path: Path, step: int) -> None:
    """Everything of the finished run is there, also what came after the checkpoint that the run continues from."""
    folder = tmp_path / "resumed"
    for source in whole.rglob("*"):
        name = source.relative_to(whole)
        is_later = name.parts[0] == "checkpoints" and source.is_file() and int(source.stem.split("_")[1]) > step
        if source.is_file() and not is_later and name.name not in ("summary.json", "status.json", "run.lock"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(source.read_bytes())
    with open(folder / "metrics.csv", "a", encoding="utf-8") as file:
        file.write("train,4,0.9")  # torn
    assert run(folder, "--resume") == 0
    assert_tracked(folder)
    assert [row["step"] for row in records(folder)] == [row["step"] for row in records(whole)]
    steps = [step for step, _ in events(folder)["train/loss"]]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_missing_package_is_an_error_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it fails
    assert run(tmp_path / "run") == 2
    assert "run.tensorboard true needs the package tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_costs_one_warning_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        def log(self, record: Any) -> None:
            raise RuntimeError("no room")

        def close(self) -> None:
            raise AssertionError("it was given up")

    trackers = Trackers([DispensableTracker("made", Failing), CsvTracker(tmp_path / "metrics.csv", [])])
    for step in (1, 2):
        trackers.log({"split": "train", "step": step, "loss": float("nan")})
    trackers.close()
    assert caplog.messages == ["made failed while logging (RuntimeError: no room); training goes on without it"]
    assert [(row["step"], row["loss"]) for row in table(tmp_path)] == [("1", ""), ("2", "")]
