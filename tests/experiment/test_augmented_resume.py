"""Every augmentation, and images held out, when a run goes on from each of its checkpoints: to the bit, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import List

import pytest
from real_runs import assert_same_result

import train

SETTINGS = ["data.num_train_images=150", "data.num_eval_images=20", "data.num_classes=10", "schedule.epochs=2"]
SETTINGS += ["run.checkpoint_every_steps=1", "run.keep_checkpoints=9", "run.evaluate_training_images=0"]
SETTINGS += ["data.rand_augment_magnitude=9", "data.random_erasing=0.5", "data.validation_images=20"]
SETTINGS += ["data.horizontal_flip=true", "batch.global_batch_size=64", "schedule.warmup_epochs=0"]
STEPS = 4  # two an epoch


def run(folder: Path, *arguments: str, settings: List[str] = SETTINGS) -> int:
    command = ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(folder)]
    return train.main([*command, *(word for setting in settings for word in ("--set", setting)), *arguments])


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "straight"
    assert run(folder) == 0
    return folder


def stopped_at(straight: Path, folder: Path, step: int) -> Path:
    """Return a copy of the run as it was when it had written the checkpoint of `step`."""
    shutil.copytree(straight, folder)
    (folder / "summary.json").unlink()
    for path in (folder / "checkpoints").iterdir():
        if int(path.stem[5:]) > step:
            path.unlink()
    return folder


@pytest.mark.parametrize("step", range(1, STEPS))
def test_it_ends_with_the_same_bits(straight: Path, tmp_path: Path, step: int) -> None:
    folder = stopped_at(straight, tmp_path / "resumed", step)
    assert run(folder, "--resume", "--set", "data.workers=1" if step == 1 else "data.workers=0") == 0
    assert_same_result(straight, folder, STEPS)


@pytest.mark.parametrize("setting", ["data.rand_augment_operations=3", "data.random_erasing=null"])
def test_another_setting_is_refused_by_its_name(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    folder = stopped_at(straight, tmp_path / "resumed", 3)
    before = {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}
    assert run(folder, "--resume", "--set", setting) == 4
    assert f"was written by another experiment: {setting.partition('=')[0]} was " in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()} == before
