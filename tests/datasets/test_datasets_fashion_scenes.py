"""Fashion scenes: the same everywhere, halves apart, labels of Fashion-MNIST, files that are checked and made again."""

import hashlib
import itertools
import json
import multiprocessing
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_images import encoded
from PIL import Image

from configs.errors import ConfigError
from configs.schema import DataConfig
from datasets import DataError, build_datasets, fashion_mnist, fashion_scenes, scenes
from datasets.data_sets import DataSets
from datasets.fashion_mnist_files import find_files
from datasets.fashion_scenes import FOLDER, obtain_scenes
from datasets.folder import data_folder
from datasets.keyed_random import KeyedRandom, KeyedRandoms
from datasets.memory import ImagesInMemory
from datasets.photo_blocks import blocks
from datasets.scenes import choose_windows, compose, cut_windows, resizing_weights

COUNTS = {"train": 30, "t10k": 20}
PHOTO_SIZES = {"one": (210, 420), "two": (520, 310)}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return KeyedRandom(seed, *shape).bytes(int(np.prod(shape))).reshape(shape).copy()


PHOTOS = {name: noise(*size, 3) for name, size in PHOTO_SIZES.items()}


def made_garments(count: int, seed: int = 0) -> np.ndarray:
    """Noise in a frame of three empty pixels."""
    garments = noise(count, 28, 28, seed=seed)
    garments[:, :3] = garments[:, -3:] = 0
    garments[:, :, :3] = garments[:, :, -3:] = 0
    return garments


def made_half(folder: Path, half: str) -> ImagesInMemory:
    count = COUNTS[half]
    return ImagesInMemory(made_garments(count, len(half))[:, None], (np.arange(count) % 10).astype(np.uint8))


@pytest.fixture
def made_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Few garments and two photographs; the log has a line for each time that they were asked for."""
    log = tmp_path / "log"
    photos = {name: encoded(Image.fromarray(pixels), "PNG").getvalue() for name, pixels in PHOTOS.items()}

    def obtain_photos() -> Dict[str, bytes]:
        with open(log, "a") as file:
            file.write("asked\n")
        return photos

    monkeypatch.setattr(fashion_scenes, "obtain_photos", obtain_photos)
    monkeypatch.setattr(fashion_scenes, "obtain_files", lambda configured: tmp_path)
    monkeypatch.setattr(fashion_mnist, "read_half", made_half)
    monkeypatch.setattr(fashion_scenes, "NUM_IMAGES", COUNTS)
    return log


def times_made(log: Path) -> int:
    return len(log.read_text().splitlines())


def pixels_of(folder: Path) -> List[bytes]:
    return [half.images.tobytes() for half in obtain_scenes(str(folder)).values()]


def test_streams_of_many_indices_are_those_of_each():
    together = KeyedRandoms((7, 1), np.arange(5, 9))
    alone = [KeyedRandom(7, 1, index) for index in range(5, 9)]
    for _ in range(3):
        assert together.bits().tolist() == [random.bits() for random in alone]
        assert together.uniform().tolist() == [random.uniform(0, 1) for random in alone]
    numbers = together.integer(np.array([1, 2, 3, 1000]))
    assert (numbers >= 0).all() and (numbers < [1, 2, 3, 1000]).all()


def test_scenes_have_the_same_bits_everywhere():
    """The sum was computed once. Where scenes change on purpose it does too, and VERSION must grow."""
    images = compose(made_garments(40), PHOTOS, "train", 100)
    assert images.shape == (40, 3, 32, 32) and images.dtype == np.uint8
    assert (fashion_scenes.VERSION, hashlib.sha256(images.tobytes()).hexdigest()) == (1, SUM)


SUM = "eef886ddfcc4106f1e4404f1bc9a3b3e0f434c86a569f54321d742e1a48ab035"


def line_of(garment: np.ndarray, side: float, start: float, place: int) -> np.ndarray:
    """Return the mean of a garment's rows under the triangle around one row of the scene; rows outside it are empty."""
    scale = 28 / side
    centre, reach = (place + 0.5 - start) * scale - 0.5, max(scale, 1.0)
    weights = {row: max(0.0, 1 - abs(row - centre) / reach) for row in range(-40, 70)}
    return sum(weights[row] * garment[row] for row in range(28)) / sum(weights.values())


def scene_by_the_formula(garment: np.ndarray, half: str, number: int) -> np.ndarray:
    """Return one scene, number by number as scenes.py documents them, without arrays of images or whole units."""
    random = KeyedRandom(scenes.SCENES, scenes.HALVES[half], number)
    photo = list(PHOTOS.values())[random.integer(2)].astype(float)
    corners = [(top, left) for of, top, left in blocks(*photo.shape[:2]) if of == half]
    top, left = corners[random.integer(len(corners))]
    shrink = random.integer(3) + 1
    top, left = (corner + random.integer(96 - 32 * shrink + 1) for corner in (top, left))
    window = photo[top : top + 32 * shrink, left : left + 32 * shrink]
    window = np.mean([window[i::shrink, j::shrink] for i in range(shrink) for j in range(shrink)], axis=0)
    window = window[..., list(itertools.permutations(range(3)))[random.integer(6)]]
    window = window.swapaxes(0, 1) if random.integer(2) else window
    window = window[::-1] if random.integer(2) else window
    window = window[:, ::-1] if random.integer(2) else window
    brightness, contrast = random.uniform(40, 215), random.uniform(0, 1)
    colour = np.array([brightness + random.uniform(-40, 40) for _ in range(3)])
    ground = colour + contrast * (window - window.mean((0, 1)))
    side = random.uniform(16, 32)
    down, right = random.uniform(0, 32 - side), random.uniform(0, 32 - side)

    def place(image: np.ndarray) -> np.ndarray:
        rows = np.stack([line_of(image, side, down, row) for row in range(32)])
        return np.stack([line_of(rows.T, side, right, column) for column in range(32)], axis=1)[..., None]

    opacity = np.minimum(garment / 48, 1)
    share, texture = place(opacity), place(opacity * garment)
    below, above = max(brightness - 40 - 20, 0), max(235 - brightness - 40, 0)
    distance = random.uniform(0, below + above)
    other = 20 + distance if distance < below else brightness + 40 + (distance - below)
    foreground = np.array([other + random.uniform(-40, 40) for _ in range(3)])
    strength = random.uniform(0.2, 0.8) * (-1) ** random.integer(2)
    scene = (1 - share) * ground + share * foreground + strength * (texture - texture.sum() / share.sum() * share)
    return scene.clip(0, 255).transpose(2, 0, 1)


@pytest.mark.parametrize("half", ["train", "val"])
def test_scenes_follow_the_documented_formula(half):
    garments = made_garments(24)
    for number, scene in enumerate(compose(garments, PHOTOS, half, 7)):
        # half a unit from rounding; resizing weights are rounded to 1/1024, of values up to 255 * 0.8
        assert np.abs(scene - scene_by_the_formula(garments[number], half, 7 + number)).max() < 1.2


@given(first=st.integers(0, 10**6), count=st.integers(2, 12), cut=st.integers(1, 11))
def test_a_scene_depends_on_its_number_and_not_on_those_made_with_it(first, count, cut):
    garments, cut = made_garments(count), min(cut, count - 1)
    together = compose(garments, PHOTOS, "val", first)
    parts = [compose(garments[:cut], PHOTOS, "val", first), compose(garments[cut:], PHOTOS, "val", first + cut)]
    assert np.array_equal(together, np.concatenate(parts))
    assert not np.array_equal(together, compose(garments, PHOTOS, "train", first))


def test_no_pixel_of_a_photograph_is_behind_garments_of_both_halves():
    sizes = [(300, 451), (427, 640), (1411, 1411)]
    owner = [np.zeros(size, dtype=int) for size in sizes]
    for half, mark in (("train", 1), ("val", 2)):
        windows = choose_windows(sizes, half, KeyedRandoms((mark,), np.arange(20_000)))
        assert np.bincount(windows[:, 0]).min() > 6_000, "photographs are chosen alike, not by their size"
        for photo, top, left, shrink in windows.tolist():
            assert top + 32 * shrink <= sizes[photo][0] and left + 32 * shrink <= sizes[photo][1]
            owner[photo][top : top + 32 * shrink, left : left + 32 * shrink] |= mark
    for pixels in owner:
        assert not (pixels == 3).any()
        assert 0.5 < (pixels > 0).mean() < 1, "most of a photograph is used"


def test_windows_are_means_of_the_photographs_pixels():
    windows = np.array([[0, 5, 7, 1], [1, 0, 96, 2], [0, 110, 3, 3]])
    found = cut_windows(list(PHOTOS.values()), windows)
    for (photo, top, left, shrink), pixels in zip(windows.tolist(), found):
        window = list(PHOTOS.values())[photo][top : top + 32 * shrink, left : left + 32 * shrink].astype(float)
        for row, column in ((0, 0), (31, 31), (4, 17)):
            square = window[row * shrink : (row + 1) * shrink, column * shrink : (column + 1) * shrink]
            # 36 times the mean is a whole number; the mean itself is rounded here
            assert np.allclose(pixels[:, row, column] / 36, square.mean((0, 1)), rtol=1e-12)


@pytest.mark.parametrize("side", [16.0, 20.3, 28.0, 32.0])
def test_garments_are_resized_like_torch_does_it(side):
    """At whole places and without rounding, torch's antialiased bilinear resize is the same but for its borders."""
    weights = resizing_weights(np.array([side]), np.array([0.0]))[0] / 1024
    inside = int(side)
    assert np.allclose(weights[2 : inside - 2].sum(1), 1, atol=2e-3), "rounded to 1/1024, four at most"
    if side == inside:
        garment = torch.from_numpy(noise(1, 1, 28, 28).astype(np.float64))
        resized = torch.nn.functional.interpolate(garment, (inside, inside), mode="bilinear", antialias=True)[0, 0]
        ours = weights @ garment[0, 0].numpy() @ weights.T
        core = slice(2, inside - 2)
        # weights are rounded to 1/1024, a few a line, of values up to 255
        assert np.abs(ours[core, core] - resized.numpy()[core, core]).max() < 1


def test_garments_stand_whole_inside_and_nothing_else_covers_the_ground():
    garments = np.zeros((500, 28, 28), dtype=np.uint8)
    garments[:, 4:24, 4:24] = 255
    opacity, texture = scenes.place_garments(garments, KeyedRandoms((1,), np.arange(500)))
    share = opacity / (scenes.OPAQUE * scenes.WEIGHT**2)
    assert share.min() >= 0 and share.max() < 1.01
    sides = np.sqrt(share.sum((1, 2))) / 20 * 28
    # 16 to 32 pixels of a scene for 28 of a garment; sums of rounded weights are off by a per cent at most
    assert 15.8 < sides.min() < 17 and 31 < sides.max() < 32.4
    assert np.allclose(texture, 255 * opacity)
    lines = share.sum(2) > 0
    assert lines[:, 1:-1].any(1).all() and lines.sum(1).min() >= 11


def test_garments_differ_in_brightness_from_their_ground():
    random = KeyedRandoms((2,), np.arange(5000))
    ground = scenes.between(scenes.GROUND_BRIGHTNESS, random)
    garment = scenes.distant_brightness(ground, random)
    assert np.abs(garment - ground).min() >= 40 - 1e-9
    assert garment.min() >= 20 and garment.max() <= 235
    assert 0.3 < (garment > ground).mean() < 0.7


def test_scenes_are_made_once_and_load_as_a_data_set(tmp_path, made_sources, capsys):
    for _ in range(2):
        assert fashion_scenes.main(["--data-dir", str(tmp_path)]) == 0
        assert capsys.readouterr().out == f"{tmp_path / FOLDER}\n"
    assert times_made(made_sources) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{FOLDER}.lock", FOLDER, "log"]
    data_sets = build_datasets(DataConfig(name="fashion_scenes", dir=str(tmp_path)), 0)
    assert (len(data_sets.train), len(data_sets.evaluation), data_sets.num_classes) == (30, 20, 10)
    assert (data_sets.image_size, data_sets.channels) == (32, 3)
    assert [data_sets.evaluation[index][1] for index in range(20)] == [*range(10)] * 2
    expected = compose(made_half(tmp_path, "train").images[:, 0], PHOTOS, "train", 0)
    assert np.array_equal(data_sets.train[3, 29][0].numpy(), expected[29])
    with pytest.raises(ConfigError, match="image_size 28"):
        build_datasets(DataConfig(name="fashion_scenes", dir=str(tmp_path), image_size=28), 0)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def other_version(path: Path) -> None:
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "version": 0}))


DAMAGE: Dict[str, Any] = {
    "train-images-idx4-ubyte": flip_a_bit,
    "train-labels-idx1-ubyte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "val-images-idx4-ubyte": lambda path: path.unlink(),
    "val-labels-idx1-ubyte": lambda path: path.write_bytes(b""),
    "record.json": lambda path: path.write_text("[]"),
    "record.json, other version": other_version,
    "record.json, no sums": lambda path: path.write_text('{"version": 1, "sha256": 3}'),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_made_again_and_said(tmp_path, made_sources, caplog, name):
    good = pixels_of(tmp_path)
    path = tmp_path / FOLDER / name.partition(",")[0]
    DAMAGE[name](path)
    assert pixels_of(tmp_path) == good
    assert times_made(made_sources) == 2
    assert path.name in caplog.text and "making the files again" in caplog.text
    caplog.clear()
    assert pixels_of(tmp_path) == good
    assert times_made(made_sources) == 2 and not caplog.text


def test_of_several_processes_one_makes_the_files(tmp_path, made_sources):
    with multiprocessing.get_context("fork").Pool(3) as pool:
        found = pool.map(pixels_of, [tmp_path] * 3, chunksize=1)
    assert found[0] == found[1] == found[2] == pixels_of(tmp_path)
    assert times_made(made_sources) == 1


def test_sources_that_cannot_be_had_are_explained(tmp_path, made_sources, monkeypatch, capsys):
    def refuse() -> Dict[str, bytes]:
        raise DataError("no such thing")

    monkeypatch.setattr(fashion_scenes, "obtain_photos", refuse)
    assert fashion_scenes.main(["--data-dir", str(tmp_path)]) == 3
    error = capsys.readouterr().err
    assert "no such thing" in error and "python -m datasets.fashion_scenes" in error


@pytest.fixture(scope="module")
def real() -> DataSets:
    if not (data_folder(None) / FOLDER / "record.json").is_file():
        pytest.skip("the fashion scenes are not here; `python -m datasets.fashion_scenes` makes them")
    return build_datasets(DataConfig(name="fashion_scenes"), 0)


def test_the_real_scenes_have_the_documented_statistics(real):
    images = real.train.source.images
    for channel in range(3):
        # the constants have four decimals
        assert abs(images[:, channel].mean(dtype=np.float64) / 255 - real.mean[channel]) < 1e-4
        assert abs(images[:, channel].std(dtype=np.float64) / 255 - real.std[channel]) < 1e-4


def test_the_real_scenes_differ_widely_in_mean_and_contrast(real):
    images = real.evaluation.source.images[:2000].astype(np.float64) / 255
    means, deviations = images.mean((1, 2, 3)), images.std((1, 2, 3))
    assert np.quantile(means, 0.95) - np.quantile(means, 0.05) > 0.4
    assert np.quantile(deviations, 0.95) / np.quantile(deviations, 0.05) > 2


def test_the_real_scenes_are_the_garments_of_fashion_mnist_in_their_order(real):
    folder = find_files(data_folder(None))
    if folder is None:
        pytest.skip("the files of Fashion-MNIST are not here; `python -m datasets.fashion_mnist` obtains them")
    for half, source in (("train", real.train.source), ("t10k", real.evaluation.source)):
        assert np.array_equal(source.labels, fashion_mnist.read_half(folder, half).labels)
