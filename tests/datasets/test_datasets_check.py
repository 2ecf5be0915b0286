"""The check of a data set finds what is wrong, all of it, and says ok when nothing is."""

import os
import shutil
from pathlib import Path

import pytest
from made_images import save_noise, write_image_folder
from PIL import Image

from configs.schema import DataConfig
from datasets import check, pack
from datasets.generated import GeneratedImages


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "images")


def lines_of(capsys: pytest.CaptureFixture[str], config: str, *settings: str, workers: int = 0) -> "tuple[int, list]":
    arguments = [part for setting in settings for part in ("--set", setting)]
    code = check.main(["--config", config, "--workers", str(workers), *arguments])
    return code, capsys.readouterr().out.splitlines()


def test_a_folder_without_fault_is_counted_and_ok(folder, capsys):
    Image.new("L", (50, 60), 9).save(folder / "train" / "ant" / "3.png")
    shutil.copy(folder / "train" / "ant" / "0.jpg", folder / "train" / "ant" / "4.jpg")
    for workers in (0, 2):
        code, lines = lines_of(capsys, "rn50_gn8pn", f"data.dir={folder}", workers=workers)
        assert (code, lines[-1]) == (0, "ok")
        assert lines[0] == "train: 8 images, 8 of them readable, in 2 of 2 classes, 3 to 5 a class"
        assert lines[1:5] == ["  ant: 5", "  bee: 3", "  height 30 to 60, width 40 to 50", "  JPEG RGB: 7, PNG L: 1"]
        assert lines[5] == "  1 are copies of others"
        assert lines[6].startswith("val: 4 images, 4 of them readable")
        assert lines[-2] == "4 images are in both halves"  # made from the same numbers


def test_every_fault_of_a_folder_is_listed(folder, capsys):
    save_noise(folder / "train" / "cat" / "0.jpg")
    (folder / "val" / "empty").mkdir()
    (folder / "val" / "notes.txt").write_text("x")
    (folder / "train" / "ant" / "list.csv").write_text("x")
    (folder / "train" / "bee" / "gone.jpg").symlink_to("nowhere")
    (folder / "train" / "bee" / ".hidden").write_text("x")
    code, lines = lines_of(capsys, "rn50_gn8pn", f"data.dir={folder}")
    assert code == 3 and lines[-1].startswith("errors of ")
    text = "\n".join(lines)
    assert "error: not in the expected layout: 6" in text
    for part in (
        "val/notes.txt: not a class folder", "ant/list.csv: not a file, or not an image by its name",
        "bee/gone.jpg: not a file, or not an image by its name",
        "val/empty: a class without images", "class cat is in train alone", "class empty is in val alone",
    ):  # fmt: skip
        assert part in text
    assert ".hidden" not in text


def test_unreadable_images_are_listed_with_their_reasons(folder, capsys):
    path = folder / "train" / "bee" / "1.jpg"
    path.write_bytes(path.read_bytes()[:500])
    for number in range(2):
        (folder / "val" / "ant" / f"{number}.jpg").write_text("<html>")
    code, lines = lines_of(capsys, "rn50_gn8pn", f"data.dir={folder}")
    text = "\n".join(lines)
    assert code == 3 and "train: 6 images, 5 of them readable" in text
    assert f"error: train: unreadable images: 1\n  {path} (class bee): cannot be used: " in text
    assert "error: val: unreadable images: 2" in text
    assert "error: val: classes without a readable image: 1\n  ant" in text


def test_unreadable_images_of_a_layout_that_is_refused_are_listed_too(folder, capsys):
    path = folder / "val" / "ant" / "0.jpg"
    path.write_bytes(path.read_bytes()[:300])
    (folder / "train" / "cat").mkdir()
    code, lines = lines_of(capsys, "rn50_gn8pn", f"data.dir={folder}")
    text = "\n".join(lines)
    assert code == 3 and lines[-1].startswith("errors of ")
    assert "train/cat: a class without images" in text
    assert f"error: unreadable images: 1\n  {path}: cannot be used: " in text


def test_shards_are_compared_with_their_sums(folder, tmp_path, capsys):
    shards = tmp_path / "shards"
    pack.pack(folder, shards, 6000, 0)
    settings = ["data.name=image_shards", f"data.dir={shards}"]
    code, lines = lines_of(capsys, "rn50_gn8pn", *settings)
    assert (code, lines[-1]) == (
        0,
        "ok",
    ) and "train: 3 shards, 0 of them without a sum" in lines
    content = bytearray((shards / "train-000001.tar").read_bytes())
    content[-1030] ^= 1  # what fills the last label up to 512 bytes: no image is touched
    (shards / "train-000001.tar").write_bytes(content)
    code, lines = lines_of(capsys, "rn50_gn8pn", *settings)
    assert code == 3 and "error: train: shards that have changed: 1" in lines
    assert any(f"{shards}/train-000001.tar: its SHA-256 sum is" in line for line in lines)
    (shards / "train-000001.tar.index").unlink()  # built anew, without a sum
    code, lines = lines_of(capsys, "rn50_gn8pn", *settings)
    assert code == 0 and "train: 3 shards, 1 of them without a sum" in lines


def test_images_in_memory_are_checked_too(capsys):
    code, lines = lines_of(capsys, "generated_smoke", "data.num_train_images=40", "data.num_eval_images=20")
    assert code == 0 and lines[0] == "train: 40 images, 40 of them readable, in 10 of 10 classes, 4 to 4 a class"
    code, lines = lines_of(capsys, "generated_smoke", "data.num_train_images=40", "data.num_eval_images=5")
    assert code == 3 and "error: val: classes without a readable image: 5" in lines


def test_a_data_set_that_is_not_there_and_a_wrong_setting_end_with_their_codes(tmp_path, capsys):
    code, lines = lines_of(capsys, "rn50_gn8pn", f"data.dir={tmp_path}/nowhere")
    assert code == 3 and any("no images in" in line for line in lines)
    assert check.main(["--config", "rn50_gn8pn", "--set", "data.name=imagenet"]) == 2
    assert "imagenet" in capsys.readouterr().err


def test_many_faults_are_cut_short(tmp_path):
    report = check.Report()
    report.complain("files", [str(number) for number in range(25)])
    assert report.errors and report.lines[0] == "error: files: 25" and report.lines[-1] == "  ... and 5 more"
    assert len(report.lines) == 22
    report = check.Report()
    report.complain("files", [])
    assert not report.errors and not report.lines


def test_a_process_that_dies_is_an_error_and_not_a_wait(monkeypatch):
    monkeypatch.setattr(GeneratedImages, "load", lambda self, index: os._exit(1))
    config = DataConfig(name="generated", num_train_images=20, num_eval_images=20)
    report = check.check(config, workers=1)
    assert report.errors and "a process that read images died" in report.lines[-1]
