"""Folders of image files: their layout, and files that cannot be read."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from made_images import save_noise, write_image_folder
from PIL import Image

from configs.schema import DataConfig
from datasets import DataError, build_datasets


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_image_folder(tmp_path)


def folder_config(folder: Path, **options) -> DataConfig:
    return DataConfig(name="image_folder", dir=str(folder), **{"image_size": 16, **options})


def test_classes_are_sorted_and_evaluation_crops_the_centre(folder):
    save_noise(folder / "train" / "Zebra" / "0.PNG", seed=20)
    save_noise(folder / "val" / "Zebra" / "0.png", size=(100, 60), seed=21)
    data_sets = build_datasets(folder_config(folder, image_size=28), 0)
    assert data_sets.class_names == ("Zebra", "ant", "bee")
    assert [data_sets.train[0, index][1] for index in range(7)] == [0, 1, 1, 1, 2, 2, 2]
    image, label = data_sets.evaluation[0]
    with Image.open(folder / "val" / "Zebra" / "0.png") as stored:
        resized = stored.resize((53, 32), Image.Resampling.BILINEAR)  # short side 28 * 256 / 224 = 32, long 53.3
    # (53 - 28) / 2 = 12.5 rounds to 12 columns on the left
    expected = np.asarray(resized)[2:30, 12:40].astype(int)
    assert label == 0 and np.abs(image.numpy().transpose(1, 2, 0) - expected).max() <= 1  # rounding
    # without min_crop_area and flip, training images are prepared like evaluation images
    assert torch.equal(data_sets.train[0, 1][0], data_sets.train[1, 1][0])


def test_the_default_size_is_224(folder):
    data_sets = build_datasets(folder_config(folder, image_size=None), 0)
    assert data_sets.evaluation[0][0].shape == (3, 224, 224)


def test_the_fingerprint_follows_the_files_and_not_their_place_or_the_augmentation(folder, tmp_path_factory):
    def fingerprint(place=folder, **options):
        return build_datasets(folder_config(place, **options), 0).fingerprint

    original = fingerprint()
    moved = tmp_path_factory.mktemp("moved") / "elsewhere"
    folder.rename(moved)
    assert fingerprint(moved, image_size=20, min_crop_area=0.5) == original
    seen = {original}
    save_noise(moved / "train" / "ant" / "9.jpg")
    seen.add(fingerprint(moved))
    (moved / "train" / "ant" / "9.jpg").rename(moved / "train" / "ant" / "8.jpg")
    seen.add(fingerprint(moved))
    save_noise(moved / "train" / "ant" / "8.jpg", size=(50, 50))
    seen.add(fingerprint(moved))
    for half in ("train", "val"):
        save_noise(moved / half / "cat" / "0.jpg")
    seen.add(fingerprint(moved))
    (moved / "val" / "bee" / "1.jpg").unlink()
    seen.add(fingerprint(moved))
    assert len(seen) == 6


def empty_class(folder):
    (folder / "train" / "ant" / "0.jpg").rename(folder / "0.jpg")
    for path in (folder / "train" / "ant").iterdir():
        path.unlink()


def one_class(folder):
    for half in ("train", "val"):
        (folder / half / "bee").rename(folder / f"{half}-bee")


def no_class(folder):
    for half in ("train", "val"):
        (folder / half).rename(folder / f"{half}-old")
        (folder / half).mkdir()


LAYOUT_FAULTS = {
    "no val": (lambda f: (f / "val").rename(f / "test"), "not there: .*val\n(.*\n)*.*train/CLASS/NAME.jpg"),
    "empty": (no_class, "train: 0 classes .it is empty.; a classifier needs 2"),
    "one class": (one_class, "train: 1 classes .ant.; a classifier needs 2"),
    "class without images": (empty_class, "train/ant: a class without images"),
    "class in train alone": (lambda f: save_noise(f / "train" / "cat" / "0.jpg"), "1 classes are in train alone.*cat"),
    "class in val alone": (lambda f: save_noise(f / "val" / "cat" / "0.jpg"), "1 classes are in val alone.*cat"),
    "folder named x.jpg": (lambda f: (f / "train" / "ant" / "x.jpg").mkdir(), r"ant/x.jpg \(class ant\): not an image"),
    "link to nothing": (
        lambda f: (f / "train" / "ant" / "x.jpg").symlink_to("gone"), r"ant/x.jpg \(class ant\): not an image",
    ),
    "text file": (
        lambda f: (f / "val" / "bee" / "notes.txt").write_text("x"), r"notes.txt \(class bee\): not an image",
    ),
    "file beside classes": (lambda f: (f / "train" / "x.jpg").write_bytes(b"x"), "train/x.jpg: expected class folders"),
}  # fmt: skip


@pytest.mark.parametrize("fault, message", LAYOUT_FAULTS.values(), ids=LAYOUT_FAULTS)
def test_a_folder_of_another_layout_is_refused_at_construction(folder, fault, message):
    fault(folder)
    with pytest.raises(DataError, match=message):
        build_datasets(folder_config(folder), 0)


def test_a_missing_folder_is_named_with_the_setting_and_the_way_to_try_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(DataError) as caught:
        build_datasets(DataConfig(name="image_folder"), 0)
    for part in (f"{tmp_path / 'nowhere'} (DATA_DIR)", "train/CLASS/NAME.jpg", "data.dir", "--set data.name=generated"):
        assert part in str(caught.value)
    assert "data.dir=null" not in str(caught.value)


def test_hidden_files_are_passed_over(folder):
    (folder / "train" / ".DS_Store").write_bytes(b"x")
    (folder / "train" / "ant" / ".DS_Store").write_bytes(b"x")
    assert len(build_datasets(folder_config(folder), 0).train) == 6


# Damaged images


def png_with_broken_check_sum(path: Path) -> None:
    content = bytearray(path.read_bytes())
    data = content.index(b"IDAT")
    length = struct.unpack(">I", content[data - 4 : data])[0]
    content[data + 4 + length] ^= 1
    path.write_bytes(content)


def cut(share):
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


IMAGE_FAULTS = {
    "cut at 25 %": ("x.jpg", cut(0.25)),
    "cut at 50 %": ("x.jpg", cut(0.5)),
    "cut at 99 %": ("x.jpg", cut(0.99)),
    "PNG cut at 99 %": ("x.png", cut(0.99)),
    "zero bytes": ("x.jpg", cut(0)),
    "web page": ("x.jpg", lambda path: path.write_text("<html><body>404</body></html>")),
    "PostScript": ("x.jpg", lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")),
    "broken PNG check sum": ("x.png", png_with_broken_check_sum),
    "deleted": ("x.jpg", lambda path: path.unlink()),
    "link to nothing": ("x.jpg", lambda path: (path.unlink(), path.symlink_to("gone"))),
    "became a folder": ("x.jpg", lambda path: (path.unlink(), path.mkdir())),
}


@pytest.mark.parametrize("name, fault", IMAGE_FAULTS.values(), ids=IMAGE_FAULTS)
@pytest.mark.parametrize("half", ["train", "val"])
def test_a_file_that_is_no_readable_image_is_named_with_its_class(folder, half, name, fault):
    path = folder / half / "bee" / name
    save_noise(path, size=(200, 150))
    data_sets = build_datasets(folder_config(folder), 0)
    images = data_sets.train if half == "train" else data_sets.evaluation
    index = len(images) - 1  # x comes after the numbers
    key = (0, index) if half == "train" else index
    assert images[key][1] == 1
    fault(path)
    with pytest.raises(DataError) as caught:
        images[key]
    assert f"{path} (class bee): cannot be used: " in str(caught.value)
    assert not str(caught.value).split("cannot be used: ")[1].startswith((";", "None"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads files without permission")
def test_a_file_without_read_permission_is_named(folder):
    data_sets = build_datasets(folder_config(folder), 0)
    path = folder / "val" / "ant" / "0.jpg"
    path.chmod(0)
    with pytest.raises(DataError, match=f"{path}.*Permission denied"):
        data_sets.evaluation[0]
