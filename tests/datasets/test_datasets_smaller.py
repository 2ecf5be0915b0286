"""Packing images smaller than they came: what is stored, and who says so."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import pytest
from made_images import smooth_photograph
from PIL import Image

import train
from configs.schema import DataConfig
from datasets import DataError, build_datasets, pack
from datasets.images.smaller import Smaller
from datasets.shards.index import parse_index
from experiment.checkpoint import load_checkpoint

SMALLER = Smaller(short_side=20, quality=90)
WORDS = "short side 20 at most, JPEG quality 90"
# file -> size of the image, and of what is stored
SIZES: Dict[str, Tuple[Tuple[int, int], Tuple[int, int]]] = {
    "wide.jpg": ((60, 40), (30, 20)),
    "high.png": ((41, 83), (20, 40)),  # 20 * 83 / 41 = 40.5, cut as evaluation cuts it
    "fits.png": ((20, 70), (20, 70)),
    "less.jpg": ((33, 16), (33, 16)),
}
KEPT = ("fits.png", "less.jpg")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for half in ("train", "val"):
        for class_name in ("ant", "bee"):
            folder = tmp_path / "folder" / half / class_name
            folder.mkdir(parents=True)
            for name, (size, _) in SIZES.items():
                smooth_photograph(*size).save(folder / name, quality=95)
    return tmp_path / "folder"


def config(folder: Path) -> DataConfig:
    return DataConfig(name="image_shards", dir=str(folder), image_size=16, min_crop_area=0.3)


def stored(folder: Path) -> List[Tuple[str, bytes]]:
    """Return the members that are images, without the number and the class."""
    images = build_datasets(config(folder), 0).train.source
    found = []
    for index in range(len(images)):
        image, _ = images.load(index)
        member = image.name.split(", ")[1].split(" ")[0]
        found.append((member.split("_", 2)[2], image.content))
    return found


def test_large_images_are_resized_to_the_short_side_and_small_ones_kept_to_the_byte(source, tmp_path):
    pack.pack(source, tmp_path / "shards", 1 << 20, 0, SMALLER)
    found = stored(tmp_path / "shards")
    assert len(found) == 2 * len(SIZES)
    for name, content in found:
        stem, _, extension = name.partition(".")
        (original,) = (each for each in SIZES if each.startswith(stem))
        image = Image.open(BytesIO(content))
        assert image.size == SIZES[original][1]
        if original in KEPT:
            assert content == (source / "train" / "ant" / original).read_bytes() and original == name
            continue
        assert (image.format, extension) == ("JPEG", "jpg")
        whole = Image.open(source / "train" / "ant" / original)
        expected = np.asarray(whole.resize(image.size, Image.Resampling.BILINEAR), dtype=int)
        # two generations of JPEG at quality 90 and more, with halved chroma, on waves of dozens of pixels
        assert np.abs(np.asarray(image) - expected).mean() < 6


def test_the_quality_is_that_of_the_file(source, tmp_path):
    image = build_datasets(DataConfig(name="image_folder", dir=str(source), image_size=16, min_crop_area=0.3), 0)
    large = next(each for each in (image.train.source.load(index)[0] for index in range(8)) if each.height == 40)
    made = {quality: Smaller(20, quality).encoded(large) for quality in (10, 90)}
    assert len(made[10]) < len(made[90])
    expected = BytesIO()
    smooth_photograph(30, 20).save(expected, "JPEG", quality=90, subsampling="4:2:0")
    opened: List[Any] = [Image.open(file) for file in (BytesIO(made[90]), expected)]
    assert opened[0].quantization == opened[1].quantization


def test_the_index_and_the_data_set_say_so_and_those_of_images_as_they_came_do_not(source, tmp_path):
    pack.pack(source, tmp_path / "as they came", 1 << 20, 0)
    pack.pack(source, tmp_path / "smaller", 1 << 20, 0, SMALLER)
    for folder, words in (("as they came", ""), ("smaller", WORDS)):
        for path in (tmp_path / folder).glob("*.index"):
            index = parse_index(path.stem, path.read_bytes())
            assert index.changed == words and index.version == "" and index.content() == path.read_bytes()
        assert build_datasets(config(tmp_path / folder), 0).changed == words
    mixed = tmp_path / "smaller"
    for path in (tmp_path / "as they came").glob("val-*"):
        (mixed / path.name).write_bytes(path.read_bytes())
    assert build_datasets(config(mixed), 0).changed == f"as they came; {WORDS}"


def test_a_run_records_it(source, tmp_path):
    arguments = ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(tmp_path / "run")]
    for setting in (
        "data.name=image_shards", f"data.dir={tmp_path / 'shards'}", "data.num_classes=null", "model.width=4",
        "data.num_train_images=null", "data.num_eval_images=null", "data.crop_padding=null", "data.min_crop_area=0.3",
        "batch.global_batch_size=2", "schedule.epochs=1",
    ):  # fmt: skip
        arguments += ["--set", setting]
    pack.pack(source, tmp_path / "shards", 1 << 20, 0, SMALLER)
    assert train.main(arguments) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["images_changed"] == WORDS
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("*.pt")
    assert load_checkpoint(checkpoint)["execution"]["images_changed"] == WORDS


def test_a_damaged_image_ends_the_packing_with_its_name(source, tmp_path):
    damaged = source / "train" / "ant" / "wide.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    pack.pack(source, tmp_path / "as they came", 1 << 20, 0)  # which decodes nothing
    with pytest.raises(DataError, match=r"wide\.jpg \(class ant\): cannot be used: .*truncated"):
        pack.pack(source, tmp_path / "smaller", 1 << 20, 0, SMALLER)
    assert not list((tmp_path / "smaller").glob("train*"))


def test_the_command_packs_smaller_and_refuses_what_makes_no_sense(source, tmp_path, capsys):
    assert pack.main([str(source), str(tmp_path / "new"), "--short-side", "20"]) == 0
    assert build_datasets(config(tmp_path / "new"), 0).changed == WORDS
    for options, words in (
        (["--quality", "90"], "add --short-side"),
        (["--short-side", "0"], "argument --short-side: 0 is not a whole number from 1"),
        (["--short-side", "9", "--quality", "101"], "argument --quality: 101 is not a whole number from 1 to 100"),
    ):
        with pytest.raises(SystemExit):
            pack.main([str(source), str(tmp_path / "other"), *options])
        assert words in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
