"""train.py --dry-run: plans without PopTorch and without images, in a form that can be given back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, List

import pytest

import train
from backends import choose_device
from configs import load_config
from configs.schema import DataConfig
from datasets import DataError, build_datasets
from experiment.prepare import prepare
from experiment.run import PlannedRun


def dry_run(*overrides: str) -> PlannedRun:
    config = load_config("generated_smoke", list(overrides), [("--device", "device.name", "ipu")])
    return prepare("test", config, choose_device(config.device, config.ipu, dry_run=True), dry_run=True)


def test_of_photographs_it_says_how_many_cores_must_decode() -> None:
    assert "host" not in dry_run().placement.details
    line = dry_run("data.image_size=128", "ipu.ipus=1").placement.details["host"]
    assert re.fullmatch(
        r"\d+ cores decode as many JPEG files of 500 x 400 pixels; this host has \d+(, too few: .*)?", line
    )


def test_what_it_prints_can_be_given_back_with_all_checkpoints() -> None:
    # One stage, so large that the blocks' outputs alone are kept.
    options = ["ipu.system=c2", "ipu.ipus=1", "data.image_size=128", "model.width=64"]
    options += ["batch.micro_batch_size=4", "data.num_train_images=64"]
    proposed = dry_run(*options).placement
    planner = proposed.details["planner"]
    by_hand = [line.split("'")[1] for line in planner.splitlines() if line.startswith("  --set '")]
    assert by_hand[0] == "ipu.splits=[]"
    assert "ipu.checkpoints=[stages.0" in by_hand[1]
    again = dry_run(*options, *by_hand).placement
    assert again.details["planner"] == planner
    assert again.details["ipus"] == proposed.details["ipus"].replace("proposed", "given")


def test_a_plan_that_does_not_fit_is_told_by_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--config", "generated_smoke", "--device", "ipu", "--dry-run", "--set", "ipu.system=c2"]
    command += ["--set", "ipu.ipus=1", "--set", "ipu.splits=[]", "--set", "batch.micro_batch_size=64"]
    assert train.main(command) == 0
    assert train.main([*command, "--set", "data.image_size=256", "--set", "model.width=64"]) == 2
    printed = capsys.readouterr()
    assert "refused: stage 0 needs" in printed.out  # the plan is there to see why
    assert "error: this is not expected to run: stage 0 needs" in printed.err


@pytest.mark.parametrize(
    ("experiment", "images", "classes", "size"),
    [("rn50_gn8pn", 1281167, 1000, 224), ("cifar10", 50000, 10, 32), ("cifar100", 50000, 100, 32)],
)
def test_it_plans_with_the_numbers_of_images_that_are_not_there(
    experiment: str, images: int, classes: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_files(config: DataConfig, seed: int) -> Any:
        if config.name != "generated":
            raise DataError("the files are not there")
        return build_datasets(config, seed)

    monkeypatch.setattr("experiment.prepare.build_datasets", without_files)
    overrides: List[str] = ["model.name=resnet8", "model.width=8"]
    name = experiment
    if experiment.startswith("cifar"):
        name = "generated_smoke"
        overrides += [f"data.name={experiment}", "data.image_size=null", "data.num_classes=null"]
        overrides += ["data.num_train_images=null", "data.num_eval_images=null"]
    config = load_config(name, overrides, [("--device", "device.name", "ipu")])
    device = choose_device(config.device, config.ipu, dry_run=True)
    data = prepare("test", config, device, dry_run=True).data
    assert (len(data.train), data.num_classes, data.image_size) == (images, classes, size)
    with pytest.raises(DataError):
        prepare("test", config, device)  # a run needs them


def test_a_given_folder_that_is_wrong_is_an_error_even_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--config", "rn50_gn8pn", "--device", "ipu", "--dry-run", "--set", f"data.dir={tmp_path}/typing_error"]
    assert train.main(command) == 3
    assert "typing_error" in capsys.readouterr().err
