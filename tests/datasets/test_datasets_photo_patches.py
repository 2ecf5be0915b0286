"""Photo patches: cut from where the documentation says, the halves apart, the photographs from either source."""

import subprocess
import zipfile
from pathlib import Path
from typing import Any, Dict, Set

import numpy as np
import pytest
import torch
from made_images import encoded
from PIL import Image

from configs.errors import ConfigError
from configs.schema import DataConfig
from datasets import DataError, build_datasets, photo_files, photo_patches
from datasets.folder import data_folder
from datasets.photo_patches import FOLDER, PATCH, choose_patches, places


def located_photo(height: int, width: int) -> np.ndarray:
    """Return a noisy photograph whose pixels tell their place: the first two channels, with noise in the third."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[:, :, 0] = np.arange(height)[:, None] // 4
    pixels[:, :, 1] = np.arange(width)[None] // 4
    return pixels


@pytest.fixture
def made_photos(monkeypatch: pytest.MonkeyPatch) -> Dict[str, bytes]:
    photos = {name: encoded(Image.fromarray(located_photo(520, 620))).getvalue() for name in ("one", "two")}
    monkeypatch.setattr(photo_patches, "obtain_photos", lambda: photos)
    return photos


@pytest.mark.parametrize("size", [(300, 451), (512, 512), (1411, 1411), (96, 96)])
def test_no_pixel_is_in_both_halves_and_a_margin_lies_between_them(size):
    owner = np.zeros(size, dtype=int)
    counts = {"train": 0, "val": 0}
    for half, top, left in places(*size):
        assert 0 <= top <= size[0] - PATCH and 0 <= left <= size[1] - PATCH
        owner[top : top + PATCH, left : left + PATCH] |= 1 if half == "train" else 2
        counts[half] += 1
    assert not (owner == 3).any()
    # grow the training pixels by 8 in each direction: they still meet no pixel of the other half
    grown = owner == 1
    for axis in (0, 1):
        grown = np.any([np.roll(grown, shift, axis) for shift in range(-8, 9)], axis=0)
    if size != (96, 96):  # rolled around the border, where a 96 x 96 photograph has no other half
        inner = (slice(8, -8), slice(8, -8))
        assert not (grown & (owner == 2))[inner].any()
        assert 0.1 < counts["val"] / sum(counts.values()) < 0.4


def test_patches_are_the_photographs_pixels_from_places_of_their_half():
    pixels = located_photo(520, 620)
    allowed: Dict[str, Set[Any]] = {half: set() for half in ("train", "val")}
    for half, top, left in places(520, 620):
        allowed[half].add((top // 4, left // 4))
    chosen = choose_patches(pixels, "x")
    assert {half: len(patches) for half, patches in chosen.items()} == {"train": 400, "val": 100}
    for half, patches in chosen.items():
        found = {tuple(patch[0, 0, :2].tolist()) for patch in patches}
        assert len(found) == len(patches) and found <= allowed[half]
        for patch in patches[:5]:
            top, left = (4 * int(number) for number in patch[0, 0, :2])
            assert any(
                np.array_equal(patch, pixels[top + down : top + down + PATCH, left + right : left + right + PATCH])
                for down in range(4)
                for right in range(4)
            )


def test_flat_patches_are_left_out_and_a_flat_photograph_is_refused():
    pixels = np.full((520, 620, 3), 100, dtype=np.uint8)
    with pytest.raises(DataError, match="photograph x has 0 patches for train, 400 are needed"):
        choose_patches(pixels, "x")


def test_patches_are_made_once_and_load_as_a_data_set(tmp_path, made_photos, monkeypatch, capsys):
    assert photo_patches.main(["--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / FOLDER)
    with Image.open(tmp_path / FOLDER / "val" / "two" / "099.jpg") as image:
        assert image.format == "JPEG" and image.size == (64, 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{FOLDER}.lock", FOLDER]
    monkeypatch.setattr(photo_patches, "obtain_photos", None)  # not asked for again
    config = DataConfig(name="photo_patches", dir=str(tmp_path), crop_padding=4, horizontal_flip=True)
    data_sets = build_datasets(config, 0)
    assert (len(data_sets.train), len(data_sets.evaluation), data_sets.num_classes) == (800, 200, 2)
    shown, label = data_sets.train[0, 799]
    assert shown.shape == (3, 64, 64) and shown.dtype == torch.uint8 and shown.is_contiguous() and label == 1
    stored = data_sets.train.source.load(799)[0].pixels()
    whole = DataConfig(name="photo_patches", dir=str(tmp_path))
    assert np.array_equal(build_datasets(whole, 0).train[0, 799][0].numpy().transpose(1, 2, 0), stored)
    cropped = build_datasets(DataConfig(name="photo_patches", dir=str(tmp_path), min_crop_area=0.3), 0)
    assert cropped.train[0, 0][0].shape == (3, 64, 64)
    with pytest.raises(ConfigError, match="image_size 32"):
        build_datasets(DataConfig(name="photo_patches", dir=str(tmp_path), image_size=32), 0)


def test_a_missing_patch_is_noticed(tmp_path, made_photos):
    photo_patches.obtain_patches(str(tmp_path))
    (tmp_path / FOLDER / "train" / "one" / "000.jpg").unlink()
    with pytest.raises(DataError, match="799 patches, expected 800; remove"):
        build_datasets(DataConfig(name="photo_patches", dir=str(tmp_path)), 0)


def test_photographs_that_cannot_be_had_are_explained(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(photo_files, "installed_files", refuse)
    monkeypatch.setattr(photo_files, "wheel_files", refuse)
    assert photo_patches.main(["--data-dir", str(tmp_path)]) == 3
    error = capsys.readouterr().err
    for part in ("scikit-image==", "scikit-learn==", "no such thing", "python -m datasets.photo_patches"):
        assert part in error
    assert [path.name for path in tmp_path.iterdir()] == [f".{FOLDER}.lock"]


def refuse(package: str) -> Any:
    raise DataError("no such thing")


def fake_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend one photograph each of two packages that exist nowhere."""
    made = [photo_files.Photo(name, f"made_{name}/data/{name}.png", SUM_OF_X) for name in ("one", "two")]
    monkeypatch.setattr(photo_files, "PHOTOS", made)
    monkeypatch.setattr(photo_files, "WHEELS", {photo.package: "made==1" for photo in made})


SUM_OF_X = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # of the file "x"


def write_package(root: Path, package: str, content: bytes = b"x") -> None:
    (root / package / "data").mkdir(parents=True)
    (root / package / "__init__.py").write_text("raise RuntimeError('imported')")
    (root / package / "data" / f"{package[5:]}.png").write_bytes(content)


def test_photographs_come_from_installed_packages_or_else_from_their_wheels(tmp_path, monkeypatch):
    fake_photos(monkeypatch)
    write_package(tmp_path / "site", "made_one")
    write_package(tmp_path / "wheel", "made_two")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def pip(command: list, **options: Any) -> "subprocess.CompletedProcess[str]":
        assert command[1:4] == ["-m", "pip", "download"] and command[-1] == "made==1"
        with zipfile.ZipFile(Path(command[-2]) / "made.whl", "w") as archive:
            archive.write(tmp_path / "wheel" / "made_two" / "data" / "two.png", "made_two/data/two.png")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(photo_files.subprocess, "run", pip)
    assert photo_files.obtain_photos() == {"one": b"x", "two": b"x"}


def test_a_photograph_of_other_content_is_refused(tmp_path, monkeypatch):
    fake_photos(monkeypatch)
    write_package(tmp_path, "made_one", b"y")
    monkeypatch.syspath_prepend(str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no network")
    monkeypatch.setattr(photo_files.subprocess, "run", lambda command, **options: failed)
    with pytest.raises(DataError) as caught:
        photo_files.obtain_photos()
    assert "made_one/data/one.png is not the expected file" in str(caught.value)
    assert "pip ended with status 1: ERROR: no network" in str(caught.value) and "not installed" in str(caught.value)


def test_the_real_patches_have_the_documented_statistics():
    if not (data_folder(None) / FOLDER).is_dir():
        pytest.skip("the photo patches are not here; `python -m datasets.photo_patches` makes them")
    data_sets = build_datasets(DataConfig(name="photo_patches"), 0)
    assert (len(data_sets.train), len(data_sets.evaluation), data_sets.num_classes) == (4000, 1000, 10)
    pixels = torch.stack([data_sets.train[0, index][0] for index in range(0, 4000)]).double() / 255
    # the constants have four decimals; another libjpeg may round pixels otherwise
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(data_sets.mean).double(), atol=1e-4)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(data_sets.std).double(), atol=1e-4)
