"""What all data sets promise, and what each one reads: made files, no network."""

import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from configs.errors import ConfigError
from configs.schema import DataConfig
from datasets import DataError, build_datasets, fashion_mnist, fashion_mnist_files
from datasets.decode import decode
from datasets.generated import EVALUATION, GeneratedImages
from datasets.torchvision_import import torchvision


def save_noise(path: Path, size=(40, 30), seed=0, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes, three images each to train on and two to evaluate on."""
    for half, count in (("train", 3), ("val", 2)):
        for class_number, class_name in enumerate(("ant", "bee")):
            for number in range(count):
                save_noise(tmp_path / half / class_name / f"{number}.jpg", seed=10 * class_number + number)
    return tmp_path


def folder_config(folder: Path, **options) -> DataConfig:
    return DataConfig(name="image_folder", dir=str(folder), **{"image_size": 16, **options})


def generated_config(**options) -> DataConfig:
    defaults = {"image_size": 12, "num_classes": 4, "num_train_images": 40, "num_eval_images": 20}
    return DataConfig(name="generated", **{**defaults, **options})


@pytest.fixture(params=["generated", "generated with padded crops", "image_folder"])
def data_sets(request, folder):
    return build_datasets(
        {
            "generated": generated_config(min_crop_area=0.3, horizontal_flip=True),
            "generated with padded crops": generated_config(crop_padding=2, horizontal_flip=True),
            "image_folder": folder_config(folder, min_crop_area=0.3, horizontal_flip=True),
        }[request.param],
        seed=5,
    )


# What all data sets promise


def test_images_are_uint8_of_the_promised_shape_and_labels_are_ints_in_range(data_sets):
    shape = (data_sets.channels, data_sets.image_size, data_sets.image_size)
    items = [data_sets.train[0, index] for index in range(len(data_sets.train))] + list(data_sets.evaluation)
    assert len(items) == len(data_sets.train) + len(data_sets.evaluation)
    for image, label in items:
        assert image.dtype == torch.uint8 and image.shape == shape and image.is_contiguous()
        assert type(label) is int
    assert {label for _, label in items} == set(range(data_sets.num_classes))
    assert len(data_sets.class_names) == data_sets.num_classes
    assert len(data_sets.mean) == len(data_sets.std) == data_sets.channels


def test_a_training_image_depends_on_seed_epoch_and_index_alone(folder):
    config = folder_config(folder, min_crop_area=0.3, horizontal_flip=True)
    first, second, other_seed = (build_datasets(config, seed).train for seed in (5, 5, 6))
    torch.manual_seed(0)
    expected = {(epoch, index): first[epoch, index][0] for epoch in range(3) for index in range(6)}
    torch.manual_seed(1)
    for key in sorted(expected, reverse=True):
        assert torch.equal(second[key][0], expected[key])
    images = list(expected.values()) + [other_seed[0, index][0] for index in range(6)]
    assert len({image.numpy().tobytes() for image in images}) == len(images)


def test_loading_neither_reads_nor_moves_the_global_random_states(data_sets):
    def states():
        return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()

    before = states()
    for index in range(4):
        _ = data_sets.train[0, index], data_sets.evaluation[index]
    assert states() == before


@pytest.mark.parametrize("workers, method", [(0, None), (1, "fork"), (2, "fork"), (1, "spawn")])
def test_any_number_of_loading_processes_gives_the_same_images(folder, workers, method):
    train = build_datasets(folder_config(folder, min_crop_area=0.3, horizontal_flip=True), 5).train
    keys = [(epoch, index) for epoch in range(2) for index in reversed(range(6))]
    loader = DataLoader(train, batch_size=4, sampler=keys, num_workers=workers, multiprocessing_context=method)
    images, labels = (torch.cat(parts) for parts in zip(*loader))
    assert torch.equal(images, torch.stack([train[key][0] for key in keys]))
    assert labels.tolist() == [train[key][1] for key in keys]


def test_data_sets_survive_pickling(data_sets):
    copy = pickle.loads(pickle.dumps(data_sets))
    assert torch.equal(copy.train[3, 1][0], data_sets.train[3, 1][0])
    assert torch.equal(copy.evaluation[1][0], data_sets.evaluation[1][0])


def test_an_image_that_was_given_away_can_be_changed_without_harm(data_sets):
    for images, key in ((data_sets.train, (0, 0)), (data_sets.evaluation, 0)):
        before = images[key][0].clone()
        images[key][0].zero_()
        assert torch.equal(images[key][0], before)


def test_indices_out_of_range_and_of_the_wrong_kind_are_refused(data_sets):
    count = len(data_sets.evaluation)
    for index in (-1, count):
        with pytest.raises(IndexError, match=f"image {index} of {count}"):
            data_sets.evaluation[index]
    with pytest.raises(IndexError):
        data_sets.train[0, len(data_sets.train)]
    with pytest.raises(TypeError, match=r"\(epoch, index\), got 3"):
        data_sets.train[3]
    with pytest.raises(ValueError, match="-1"):
        data_sets.train[-1, 0]
    assert torch.equal(data_sets.evaluation[torch.tensor(1)][0], data_sets.evaluation[1][0])


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_outside_64_bits_is_refused_at_construction(seed):
    with pytest.raises(ValueError, match="64"):
        build_datasets(generated_config(), seed)


REFUSED = [
    ({"name": "fashion_mnist", "image_size": 32}, "image_size 32.*28 pixels"),
    ({"name": "cifar10", "image_size": 64}, "image_size 64.*32 pixels"),
    ({"name": "cifar100", "num_classes": 10}, "num_classes 10 has no effect with data.name cifar100"),
    ({"name": "fashion_mnist", "num_train_images": 10}, "num_train_images 10 has no effect"),
    ({"name": "image_folder", "num_eval_images": 10}, "num_eval_images 10 has no effect"),
    ({"name": "image_folder", "crop_padding": 4}, "crop_padding 4.*min_crop_area"),
    ({"name": "generated", "dir": "data"}, "dir 'data' has no effect with data.name generated"),
    ({"name": "generated", "image_size": 8, "crop_padding": 8}, "crop_padding 8 is not below the image size 8"),
]


@pytest.mark.parametrize("options, message", REFUSED)
def test_options_without_effect_or_meaning_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_datasets(DataConfig(**options), 0)


# Importing torchvision

FAKE_TORCHVISION = """
import torch
if not hasattr(torch.ops.torchvision, "nms"):
    raise RuntimeError("{message}")
assert hasattr(torch.ops.torchvision, "qnms")
"""
IMPORT_AND_CALL = """
import torch
from datasets.torchvision_import import torchvision
print(torchvision.__file__)
try:
    torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError as error:
    print(error)
"""


def import_fake_torchvision(folder: Path, message: str) -> "subprocess.CompletedProcess[str]":
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(FAKE_TORCHVISION.format(message=message))
    root = Path(__file__).resolve().parent.parent
    inherited = os.environ.get("PYTHONPATH", "")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(root), inherited])}
    return subprocess.run(
        [sys.executable, "-c", IMPORT_AND_CALL], env=environment, cwd=root, capture_output=True, text=True, check=False
    )


def test_a_torchvision_that_lacks_its_operators_is_imported_and_their_use_explained(tmp_path):
    result = import_fake_torchvision(tmp_path, "operator torchvision::nms does not exist")
    assert result.returncode == 0, result.stderr
    assert str(tmp_path) in result.stdout and "does not match the installed PyTorch" in result.stdout


def test_other_failures_to_import_torchvision_are_not_hidden(tmp_path):
    result = import_fake_torchvision(tmp_path, "another reason")
    assert result.returncode == 1 and "RuntimeError: another reason" in result.stderr


# Fashion-MNIST itself


def test_the_real_fashion_mnist_has_the_documented_statistics():
    found = fashion_mnist_files.find_files(fashion_mnist_files.data_folder(None))
    if found is None:
        pytest.skip("the files of Fashion-MNIST are not here; `python -m datasets.fashion_mnist` obtains them")
    train, evaluation = (fashion_mnist.read_half(found, half) for half in ("train", "t10k"))
    assert np.bincount(train.labels).tolist() == [6000] * 10
    assert np.bincount(evaluation.labels).tolist() == [1000] * 10
    scaled = train.images / 255.0
    # the constants have four decimals
    assert abs(scaled.mean() - fashion_mnist.MEAN[0]) < 5e-5
    assert abs(scaled.std() - fashion_mnist.STD[0]) < 5e-5
    assert [fashion_mnist.CLASS_NAMES[label] for label in train.labels[:3]] == [
        "Ankle boot",
        "T-shirt/top",
        "T-shirt/top",
    ]


# CIFAR


def write_cifar10(folder: Path, monkeypatch) -> np.ndarray:
    """Write 4 + 2 images in CIFAR-10's format and have torchvision expect them; return the 4, (N, C, H, W)."""
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    contents = {
        "data_batch_1": {"data": pixels[:4].reshape(4, -1), "labels": [3, 0, 9, 1]},
        "test_batch": {"data": pixels[4:].reshape(2, -1), "labels": [2, 5]},
        "batches.meta": {"label_names": [f"class {number}" for number in range(10)]},
    }
    sums = {}
    for name, content in contents.items():
        (base / name).write_bytes(pickle.dumps(content))
        sums[name] = torchvision.datasets.utils.calculate_md5(str(base / name))
    reader = torchvision.datasets.CIFAR10
    monkeypatch.setattr(reader, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(reader, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": sums["batches.meta"]})
    return pixels[:4]


@pytest.fixture
def no_download(monkeypatch):
    def refuse(self):
        raise RuntimeError("no network in tests")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", refuse)


def test_cifar10_files_are_read_channels_first(tmp_path, monkeypatch, no_download):
    pixels = write_cifar10(tmp_path, monkeypatch)
    data_sets = build_datasets(DataConfig(name="cifar10", dir=str(tmp_path)), 0)
    assert (len(data_sets.train), len(data_sets.evaluation)) == (4, 2)
    assert (data_sets.num_classes, data_sets.channels, data_sets.image_size) == (10, 3, 32)
    image, label = data_sets.train[0, 2]
    assert np.array_equal(image.numpy(), pixels[2]) and label == 9
    assert data_sets.class_names[9] == "class 9"


def test_a_damaged_cifar_file_is_named_and_not_opened(tmp_path, monkeypatch, no_download):
    write_cifar10(tmp_path, monkeypatch)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{path} is damaged: its MD5 sum"):
        build_datasets(DataConfig(name="cifar10", dir=str(tmp_path)), 0)


@pytest.mark.parametrize("name, base", [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_missing_cifar_files_are_explained(tmp_path, no_download, name, base):
    with pytest.raises(DataError) as caught:
        build_datasets(DataConfig(name=name, dir=str(tmp_path / "images")), 0)
    for part in (str(tmp_path / "images"), base, "no network", "data.dir", "DATA_DIR", "--set data.name=generated"):
        assert part in str(caught.value)


# Made images


def test_generated_images_are_a_function_of_half_and_index_and_not_of_the_seed():
    first, second = (build_datasets(generated_config(), seed) for seed in (1, 2))
    for index in (0, 1, 19):
        assert torch.equal(first.evaluation[index][0], second.evaluation[index][0])
        assert torch.equal(first.train[0, index][0], second.train[4, index][0])
        assert not torch.equal(first.train[0, index][0], first.evaluation[index][0])


def test_generated_images_follow_the_documented_formula_to_within_the_noise():
    source = GeneratedImages(EVALUATION, 40, 1, 16)
    frequencies, phases, colours = source.frequencies[0], source.phases[0], source.colours[0]
    residuals = []
    for index in range(40):
        image = source.load(index)[0].astype(np.float64)
        # the shift is the image's own secret: take the best of a fine grid of candidates
        shifts = np.stack(np.meshgrid(*[np.linspace(-1 / 8, 1 / 8, 21)] * 2), axis=-1).reshape(-1, 2)
        rows, columns = np.mgrid[0:16, 0:16] / 16
        angles = (
            2
            * np.pi
            * (
                frequencies[:, 0, None, None] * (rows + shifts[:, 0, None, None, None])
                + frequencies[:, 1, None, None] * (columns + shifts[:, 1, None, None, None])
            )
            + phases[:, None, None]
        )
        candidates = 127.5 + 24 * np.einsum("kr,srhw->skhw", colours, np.cos(angles))
        residuals.append(((candidates - image) ** 2).mean(axis=(1, 2, 3)).min())
    # bytes scaled to +-48 have variance 774, known here to 4 (standard error of 40 * 768 values); the best of many
    # shifts lies a little below, the grid's coarseness adds a little
    assert abs(np.mean(residuals) - 774) < 20


def test_generated_images_have_the_documented_mean_and_standard_deviation():
    data_sets = build_datasets(generated_config(num_classes=200, image_size=24, num_train_images=1000), 0)
    pixels = torch.stack([data_sets.train[0, index][0] for index in range(1000)]).double() / 255
    # colours and phases of 200 classes: the mean's standard error is about .1 %, the deviation's 1 %
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(data_sets.mean).double(), atol=0.004)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(data_sets.std).double(), rtol=0.04)


def test_a_small_net_learns_generated_images_and_a_single_pixel_does_not_tell_the_class():
    torch.manual_seed(0)
    config = DataConfig(name="generated", image_size=16, num_train_images=1280, num_eval_images=400)
    data_sets = build_datasets(config, 0)

    def whole(items):
        images, labels = zip(*items)
        return (torch.stack(images).float() / 255 - 0.5) / data_sets.std[0], torch.tensor(labels)

    images, labels = whole(data_sets.train[0, index] for index in range(1280))
    eval_images, eval_labels = whole(data_sets.evaluation)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(6):
        for rows in torch.randperm(1280).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    accuracy = (net(eval_images).argmax(1) == eval_labels).double().mean()
    assert accuracy > 0.95

    # the best single pixel: the class whose mean colour there is nearest
    means = torch.stack([images[labels == label].mean(0) for label in range(10)])
    distances = (eval_images[:, None] - means[None]).square().sum(2)
    single = (distances.argmin(1) == eval_labels[:, None, None]).double().mean(0).max()
    assert single < 0.35


# Folders of images


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
    assert label == 0 and np.array_equal(image.numpy().transpose(1, 2, 0), np.asarray(resized)[2:30, 12:40])
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


def test_the_fingerprint_of_images_in_memory_follows_pixels_and_labels(tmp_path, monkeypatch, no_download):
    fingerprints = set()
    for number in range(2):
        write_cifar10(tmp_path / str(number), monkeypatch)
        config = DataConfig(name="cifar10", dir=str(tmp_path / str(number)))
        fingerprints.add(build_datasets(config, number).fingerprint)
    assert len(fingerprints) == 1
    original = torchvision.datasets.CIFAR10._load_meta
    for change in ("data", "targets"):

        def changed(self, change=change):
            original(self)
            getattr(self, change)[0] = 7

        monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", changed)
        fingerprints.add(build_datasets(config, 0).fingerprint)
    assert len(fingerprints) == 3


def test_the_fingerprint_of_made_images_follows_what_determines_them():
    options = [{}, {"image_size": 13}, {"num_classes": 5}, {"num_train_images": 41}, {"num_eval_images": 21}]
    fingerprints = [build_datasets(generated_config(**changed), 0).fingerprint for changed in options]
    assert len(set(fingerprints)) == len(options)
    assert build_datasets(generated_config(crop_padding=2), 9).fingerprint == fingerprints[0]


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


def png(width: int, height: int, bit_depth: int, color_type: int, rows: bytes, before_data: bytes = b"") -> bytes:
    """A PNG file around already filtered rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    before = chunk(before_data[:4], before_data[4:]) if before_data else b""
    data = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 20_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header_before_memory_is_taken(side):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="pixels"):
        decode(BytesIO(png(side, side, 8, 2, bytes(100))))
    # 10,000 x 10,000 RGB pixels would take 300 MB; kilobytes here
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_an_endless_strip_is_refused_and_a_long_image_is_not():
    with pytest.raises(DataError, match="1010 x 10 pixels: one side is more than 100 times"):
        decode(encoded(Image.new("RGB", (1010, 10))))
    assert decode(encoded(Image.new("RGB", (1000, 10)))).size == (1000, 10)


# Image modes


def encoded(image: Image.Image, format: str = "PNG", **options) -> BytesIO:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    buffer.seek(0)
    return buffer


def of_pixels(mode: str, pixels: list) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def palette_image(**options) -> BytesIO:
    image = of_pixels("P", [0, 1])
    image.putpalette([10, 20, 30, 200, 100, 0])
    return encoded(image, **options)


# half-transparent red on white: 255 * 128/255 + 255 * 127/255 = 255 in red, 127 in the others
MODES = {
    "RGB": (lambda: encoded(of_pixels("RGB", [(1, 2, 3), (4, 5, 6)])), [(1, 2, 3), (4, 5, 6)]),
    "gray": (lambda: encoded(of_pixels("L", [0, 77, 255])), [(0,) * 3, (77,) * 3, (255,) * 3]),
    "1 bit": (lambda: encoded(of_pixels("1", [0, 255])), [(0,) * 3, (255,) * 3]),
    "palette": (palette_image, [(10, 20, 30), (200, 100, 0)]),
    "palette, transparent": (lambda: palette_image(transparency=1), [(10, 20, 30), (255, 255, 255)]),
    "palette, alpha table": (lambda: palette_image(transparency=b"\xff\x00"), [(10, 20, 30), (255, 255, 255)]),
    "RGB, transparent colour": (
        lambda: encoded(of_pixels("RGB", [(1, 2, 3), (4, 5, 6)]), transparency=(4, 5, 6)), [(1, 2, 3), (255,) * 3],
    ),
    "RGBA": (
        lambda: encoded(of_pixels("RGBA", [(255, 0, 0, 0), (255, 0, 0, 128), (255, 0, 0, 255)])),
        [(255, 255, 255), (255, 127, 127), (255, 0, 0)],
    ),
    "LA": (lambda: encoded(of_pixels("LA", [(0, 0), (0, 128), (9, 255)])), [(255,) * 3, (127,) * 3, (9,) * 3]),
    "CMYK": (
        lambda: encoded(of_pixels("CMYK", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255)]), "TIFF"),
        [(255, 255, 255), (0, 255, 255), (0, 0, 0)],
    ),
    "16-bit gray": (
        lambda: BytesIO(png(5, 1, 16, 0, b"\0" + struct.pack(">5H", 0, 128, 129, 32896, 65535))),
        [(0,) * 3, (0,) * 3, (1,) * 3, (128,) * 3, (255,) * 3],
    ),
    "16-bit gray, transparent value": (
        lambda: BytesIO(png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 257, 514), b"tRNS" + struct.pack(">H", 514))),
        [(1,) * 3, (255,) * 3],
    ),
    "16-bit gray PGM": (
        lambda: BytesIO(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 257 * 9, 65535)), [(0,) * 3, (9,) * 3, (255,) * 3],
    ),
    "16-bit gray TIFF": (
        lambda: encoded(Image.fromarray(np.array([[0, 257 * 9, 65535]], dtype=np.uint16)), "TIFF"),
        [(0,) * 3, (9,) * 3, (255,) * 3],
    ),
    "16-bit RGB": (
        lambda: BytesIO(png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0, 255, 256, 511, 32768, 65535))),
        [(0, 0, 1), (1, 128, 255)],
    ),
    "animated GIF, first frame": (
        lambda: encoded(
            of_pixels("L", [5, 250]), "GIF", save_all=True, append_images=[of_pixels("L", [100, 100])]
        ),
        [(5,) * 3, (250,) * 3],
    ),
    "animated WebP, first frame": (
        lambda: encoded(
            of_pixels("RGB", [(1, 2, 3), (250, 0, 9)]), "WEBP", save_all=True, lossless=True,
            append_images=[of_pixels("RGB", [(9, 9, 9), (9, 9, 9)])],
        ),
        [(1, 2, 3), (250, 0, 9)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("file, expected", MODES.values(), ids=MODES)
def test_each_image_mode_becomes_rgb_of_the_documented_value(file, expected):
    image = decode(file())
    assert image.mode == "RGB"
    assert [tuple(pixel) for pixel in np.asarray(image)[0].tolist()] == expected


def test_a_16_bit_ramp_keeps_all_its_256_levels():
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in ramp)
    values = np.asarray(decode(BytesIO(png(64, 64, 16, 0, rows))))[:, :, 0]
    # rounding to whole numbers is off by a half at most
    assert np.abs(values - ramp / 257).max() <= 0.5 + 1e-9


def test_cmyk_jpeg_is_converted():
    values = np.asarray(decode(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG")))
    # cyan, to within the error of JPEG
    assert np.abs(values.reshape(-1, 3).mean(0) - [0, 255, 255]).max() < 4


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_of_32_bits_are_refused(mode):
    with pytest.raises(DataError, match="32 bits"):
        decode(encoded(Image.new(mode, (4, 4)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_not_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(Image.new("RGB", (8, 4), "red"), "JPEG", exif=exif))
    assert image.size == (8, 4)


def test_an_icc_profile_changes_no_value():
    image = of_pixels("RGB", [(1, 2, 3), (200, 5, 6)])
    assert np.array_equal(np.asarray(decode(encoded(image, icc_profile=b"profile"))), np.asarray(image))
