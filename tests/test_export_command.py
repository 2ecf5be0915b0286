"""export.py and `evaluate.py --image`: a trained network alone, with the preprocessing that it needs."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from made_images import write_image_folder
from PIL import Image

import evaluate
import export
import train
from configs import load_config
from configs.schema import DataConfig
from datasets import build_datasets
from datasets.preprocessing import preprocessing_of
from experiment import exporting
from experiment.trained import load_trained

SETTINGS = ["data.num_train_images=192", "data.num_eval_images=130", "schedule.epochs=1", "averaging.every=step"]
SETTINGS += ["averaging.decay=0.5", "run.evaluate_training_images=0", "run.checkpoint_every_steps=null"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    arguments = ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(folder)]
    assert train.main(arguments + [part for setting in SETTINGS for part in ("--set", setting)]) == 0
    return folder


def report_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Dict[str, Any]:
    capsys.readouterr()
    assert evaluate.main(list(arguments)) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "arguments", [["--format", "pt2"], ["--format", "pt2", "--fold"], ["--format", "onnx", "--fold"]], ids=" ".join
)
def test_an_exported_run_says_its_parity_and_evaluates_as_the_run(
    run_folder: Path, capsys: pytest.CaptureFixture[str], arguments: List[str]
) -> None:
    assert export.main([str(run_folder), *arguments]) == 0
    output = capsys.readouterr().out
    assert "resnet8, the average of the weights of step 3" in output
    assert "input     float32 (N, 3, 16, 16): RGB, short side to 16 pixels" in output and "parity    largest" in output
    assert ("7 layers" in output) == ("--fold" in arguments)
    file = run_folder / f"model.{arguments[1]}"
    exported = report_of(capsys, str(file), "--config", str(run_folder / "config.yaml"))
    expected = report_of(capsys, str(run_folder))
    assert exported["confusion"] == expected["confusion"]
    assert exported["loss"] == pytest.approx(expected["loss"], rel=1e-4)  # float32 through exported operations


def test_the_file_tells_other_programs_what_an_image_needs(run_folder: Path) -> None:
    assert export.main([str(run_folder), "--format", "pt2"]) == 0
    with zipfile.ZipFile(run_folder / "model.pt2") as archive:
        name = next(name for name in archive.namelist() if name.endswith("about.json"))
        about = json.loads(archive.read(name))
    assert about["class_names"][3] == "pattern 3"
    assert about["preprocessing"]["mean"] == [0.5] * 3 and about["preprocessing"]["center_crop"] == 16


def test_a_file_that_computes_something_else_is_an_error(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true = exporting.run_file
    monkeypatch.setattr(export, "run_file", lambda path, images: true(path, images) + 0.01)
    assert export.main([str(run_folder), "--format", "pt2", "--out", str(tmp_path / "wrong.pt2")]) == 4
    assert "does not compute what the network computes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--out", "{folder}/model.onnx"], 2, "the name of this format ends in .pt2"),
        (["--out", "{folder}/none/model.pt2"], 2, "none is not a folder; create it"),
        (["--out", "{folder}/folder.pt2"], 2, "folder.pt2 is a folder, where a file is to be"),
        (["--checkpoint", "best"], 4, "has no best checkpoint"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    run_folder: Path, capsys: pytest.CaptureFixture[str], arguments: List[str], code: int, part: str
) -> None:
    (run_folder / "folder.pt2").mkdir(exist_ok=True)
    words = [argument.format(folder=run_folder) for argument in arguments]
    assert export.main([str(run_folder), "--format", "pt2", *words]) == code
    error = capsys.readouterr().err
    assert part in error and error.startswith("error: ")


def test_weights_without_a_configuration_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "alone.pt")
    assert export.main([str(tmp_path / "alone.pt"), "--format", "pt2"]) == 4
    assert "holds only weights" in capsys.readouterr().err


def test_images_are_named_with_their_five_most_probable_classes(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An evaluation image, stored as a file, is taken for what the network takes the data set's image for."""
    data = build_datasets(load_config(str(run_folder / "config.yaml")).data, 0)
    paths = []
    for index in range(2):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(data.evaluation[index][0].permute(1, 2, 0).numpy()).save(paths[-1])
    capsys.readouterr()
    assert evaluate.main([str(run_folder), "--image", *map(str, paths)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == str(paths[0]) and lines[7] == str(paths[1]) and len(lines) == 13
    trained = load_trained(run_folder)
    with torch.no_grad():
        logits = trained.network(trained.inputs(data.evaluation[0][0].unsqueeze(0)))[0]
    order = logits.argsort(descending=True)[:5].tolist()
    probabilities = torch.softmax(logits, 0)
    assert lines[2:7] == [f"  {float(probabilities[label]):7.2%}  pattern {label}" for label in order]


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["--image", "{folder}/config.yaml"], 3, "no image of"),
        (["--image", "{folder}/none.jpg"], 3, "none.jpg cannot be read: No such file"),
        (["--image", "a.jpg", "--split", "train"], 2, "have no effect with --image"),
        (["--image", "a.jpg", "--out", "b.json"], 2, "--out has no effect with --image"),
    ],
)
def test_images_that_cannot_be_named_are_one_line(
    run_folder: Path, capsys: pytest.CaptureFixture[str], arguments: List[str], code: int, part: str
) -> None:
    assert evaluate.main([str(run_folder), *(argument.format(folder=run_folder) for argument in arguments)]) == code
    error = capsys.readouterr().err
    assert part in error and error.startswith("error: ")


def test_preprocessing_gives_what_the_data_set_evaluates_on_and_needs_none_of_its_images(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "folder")
    config = DataConfig(name="image_folder", dir=str(folder), image_size=16)
    data = build_datasets(config, 0)
    path = folder / "val" / "bee" / "1.jpg"
    shutil.copy(path, tmp_path / "copy.jpg")
    shutil.rmtree(folder)
    preprocessing = preprocessing_of(config)
    pixels = preprocessing.pixels(tmp_path / "copy.jpg")
    write_image_folder(folder)
    assert torch.equal(pixels, data.evaluation[3][0])
    assert (preprocessing.mean, preprocessing.std, preprocessing.short_side) == (data.mean, data.std, 18)


@pytest.mark.parametrize("name", ["fashion_mnist", "fashion_scenes", "photo_patches", "generated"])
def test_preprocessing_has_the_numbers_of_each_data_set(name: str) -> None:
    config = DataConfig(name=name)  # parametrized
    data, preprocessing = build_datasets(config, 0), preprocessing_of(config)
    assert (preprocessing.mean, preprocessing.std) == (data.mean, data.std)
    assert (preprocessing.image_size, preprocessing.short_side, preprocessing.channels) == (
        data.image_size,
        data.image_size,
        data.channels,
    )


def test_a_colour_photograph_becomes_gray_for_a_network_of_one_channel(tmp_path: Path) -> None:
    pixels = np.zeros((28, 56, 3), dtype=np.uint8)
    pixels[:, :, 1] = 200  # green: 0.587 of 200 in gray
    Image.fromarray(pixels).save(tmp_path / "green.png")
    gray = preprocessing_of(DataConfig(name="fashion_mnist")).pixels(tmp_path / "green.png")
    assert gray.shape == (1, 28, 28) and (gray == 117).all()
