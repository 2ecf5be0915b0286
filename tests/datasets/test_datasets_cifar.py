"""CIFAR-10 and CIFAR-100 from files of their official format."""

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from configs.schema import DataConfig
from datasets import DataError, build_datasets
from datasets.images.torchvision_import import torchvision

CLASSES = {"cifar10": 10, "cifar100": 100}
LABELS = {"train": [3, 0, 9, 1], "test": [2, 5]}


def write_cifar(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Write 4 + 2 images in the official format and have torchvision expect them; return the 4, (N, C, H, W)."""
    reader = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    pixels = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), dtype=np.uint8)
    train, test, meta = (
        ("data_batch_1", "test_batch", "batches.meta") if name == "cifar10" else ("train", "test", "meta")
    )

    def labels(half: str) -> dict:
        if name == "cifar10":
            return {"labels": LABELS[half]}
        return {"fine_labels": LABELS[half], "coarse_labels": [19] * len(LABELS[half])}

    contents = {
        train: {"data": pixels[:4].reshape(4, -1), **labels("train")},
        test: {"data": pixels[4:].reshape(2, -1), **labels("test")},
        meta: {reader.meta["key"]: [f"class {number}" for number in range(CLASSES[name])]},
    }
    base = folder / reader.base_folder
    base.mkdir(parents=True)
    for file_name, content in contents.items():
        (base / file_name).write_bytes(pickle.dumps(content))
    sums = {file_name: torchvision.datasets.utils.calculate_md5(str(base / file_name)) for file_name in contents}
    monkeypatch.setattr(reader, "train_list", [[train, sums[train]]])
    monkeypatch.setattr(reader, "test_list", [[test, sums[test]]])
    monkeypatch.setattr(reader, "meta", {**reader.meta, "md5": sums[meta]})
    return pixels[:4]


@pytest.fixture
def no_download(monkeypatch):
    def refuse(self):
        raise RuntimeError("no network in tests")

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", refuse)


@pytest.mark.parametrize("name", CLASSES)
def test_official_files_are_read_channels_first_with_their_fine_labels(tmp_path, monkeypatch, no_download, name):
    pixels = write_cifar(name, tmp_path, monkeypatch)
    data_sets = build_datasets(DataConfig(name=name, dir=str(tmp_path)), 0)
    assert (len(data_sets.train), len(data_sets.evaluation)) == (4, 2)
    assert (data_sets.num_classes, data_sets.channels, data_sets.image_size) == (CLASSES[name], 3, 32)
    for index, label in enumerate(LABELS["train"]):
        image, found = data_sets.train[0, index]
        assert np.array_equal(image.numpy(), pixels[index]) and found == label
    assert [data_sets.evaluation[index][1] for index in range(2)] == LABELS["test"]
    assert data_sets.class_names[9] == "class 9"


@pytest.mark.parametrize("name", CLASSES)
def test_the_official_archive_is_unpacked_without_a_download(tmp_path, monkeypatch, name):
    pixels = write_cifar(name, tmp_path / "made", monkeypatch)
    reader = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    folder = tmp_path / "data"
    folder.mkdir()
    with tarfile.open(folder / reader.filename, "w:gz") as archive:
        archive.add(tmp_path / "made" / reader.base_folder, reader.base_folder)
    md5 = torchvision.datasets.utils.calculate_md5(str(folder / reader.filename))
    monkeypatch.setattr(reader, "tgz_md5", md5)
    monkeypatch.setattr(reader, "url", "http://127.0.0.1:9/nothing-answers-here.tar.gz")
    data_sets = build_datasets(DataConfig(name=name, dir=str(folder)), 0)
    assert np.array_equal(data_sets.train[0, 3][0].numpy(), pixels[3])
    (folder / reader.filename).write_bytes(b"another archive")
    for path in (folder / reader.base_folder).iterdir():
        path.unlink()
    with pytest.raises(DataError, match=f"{name}: no images in"):
        build_datasets(DataConfig(name=name, dir=str(folder)), 0)


def test_the_sums_of_the_published_files_are_compared():
    # the list of torchvision, which is the publisher's: five batches and one; a file each
    assert [len(getattr(torchvision.datasets.CIFAR10, name)) for name in ("train_list", "test_list")] == [5, 1]
    assert torchvision.datasets.CIFAR10.tgz_md5 == "c58f30108f718f92721af3b95e74349a"
    assert torchvision.datasets.CIFAR100.tgz_md5 == "eb9058c3a382ffc7106e4002c42a8d85"


def test_a_damaged_cifar_file_is_named_and_not_opened(tmp_path, monkeypatch, no_download):
    write_cifar("cifar10", tmp_path, monkeypatch)
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


def test_the_fingerprint_of_images_in_memory_follows_pixels_and_labels(tmp_path, monkeypatch, no_download):
    fingerprints = set()
    for number in range(2):
        write_cifar("cifar10", tmp_path / str(number), monkeypatch)
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
