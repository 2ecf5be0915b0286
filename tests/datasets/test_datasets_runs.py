"""Runs on folders of images: data that changes under them, and sets that are too small."""

import json
from pathlib import Path
from typing import Callable, List

import pytest
from made_images import save_noise, write_image_folder

import train


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "images")


def arguments(folder: Path, output: Path, *settings: str) -> List[str]:
    result = ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(output)]
    for setting in (
        "data.name=image_folder", f"data.dir={folder}", "data.num_classes=null", "data.num_train_images=null",
        "data.num_eval_images=null", "data.crop_padding=null", "data.min_crop_area=0.3", "batch.global_batch_size=2",
        "schedule.epochs=2", "model.width=4", *settings,
    ):  # fmt: skip
        result += ["--set", setting]
    return result


def delete_file(folder: Path) -> None:
    (folder / "train" / "ant" / "1.jpg").unlink()


def add_class(folder: Path) -> None:
    for half in ("train", "val"):
        save_noise(folder / half / "cat" / "0.jpg")


def replace_file(folder: Path) -> None:
    save_noise(folder / "val" / "bee" / "0.jpg", size=(90, 80))


@pytest.mark.parametrize("change", [delete_file, add_class, replace_file])
def test_a_run_is_not_continued_on_images_that_have_changed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None]
) -> None:
    output = tmp_path / "run"
    assert train.main(arguments(folder, output)) == 0
    change(folder)
    capsys.readouterr()
    assert train.main([*arguments(folder, output), "--resume"]) in (3, 4)  # a class more is another network, too
    error = capsys.readouterr().err
    assert "the images of image_folder are not those that" in error and "restore them" in error


def test_a_file_that_is_deleted_while_a_run_goes_on_ends_it_with_its_name(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = train.evaluate

    def deleting(*values: object) -> object:
        (folder / "train" / "ant" / "1.jpg").unlink(missing_ok=True)
        return evaluate(*values)

    monkeypatch.setattr(train, "evaluate", deleting)
    assert train.main(arguments(folder, tmp_path / "run")) == 3
    assert "ant/1.jpg (class ant): cannot be used: No such file" in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 3


def test_the_same_with_a_limit_goes_on_and_says_what_was_replaced(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "train" / "ant" / "1.jpg").write_text("<html>")
    assert train.main(arguments(folder, tmp_path / "run", "data.max_corrupt=1")) == 0
    assert "replaced images" in capsys.readouterr().out


def test_fewer_images_than_a_batch_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments(folder, tmp_path / "run", "batch.global_batch_size=8")) == 2
    assert "batch.global_batch_size 8 is more than the 6 training images of image_folder" in capsys.readouterr().err


def test_a_last_evaluation_batch_of_one_image_counts_with_batch_norm(folder: Path, tmp_path: Path) -> None:
    save_noise(folder / "val" / "bee" / "2.jpg", seed=30)  # five images in batches of 2, 2 and 1
    batch_norm = ("norm.name=batch", "norm.proxy=false", "norm.num_groups=null", "batch.norm_batch_size=2")
    assert train.main(arguments(folder, tmp_path / "run", *batch_norm, "batch.micro_batch_size=2")) == 0
    top1 = json.loads((tmp_path / "run" / "summary.json").read_text())["top1"]
    assert top1 * 5 == pytest.approx(round(top1 * 5), abs=1e-9)
