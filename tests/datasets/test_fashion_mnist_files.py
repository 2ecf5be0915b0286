"""Where Fashion-MNIST comes from, what is checked, and what is said when it cannot be had. No network."""

import gzip
import multiprocessing
import stat
from pathlib import Path

import numpy as np
import pytest

from configs.schema import DataConfig
from datasets import DataError, build_datasets, fashion_mnist, fashion_mnist_files
from datasets.fashion_mnist_files import FILE_NAMES, obtain_files
from datasets.idx import read_idx

TRAIN_IMAGES, TRAIN_LABELS, EVAL_IMAGES, EVAL_LABELS = FILE_NAMES
HEADERS = {
    TRAIN_IMAGES: "00000803 0000ea60 0000001c 0000001c",
    TRAIN_LABELS: "00000801 0000ea60",
    EVAL_IMAGES: "00000803 00002710 0000001c 0000001c",
    EVAL_LABELS: "00000801 00002710",
}


def made_content(name: str) -> bytes:
    """Return a file of full size: image i is filled with i modulo 251, label i is i modulo 10."""
    count = 60_000 if name.startswith("train") else 10_000
    numbers = np.arange(count)
    values = np.repeat(numbers % 251, 784) if "images" in name else numbers % 10
    return bytes.fromhex(HEADERS[name]) + values.astype(np.uint8).tobytes()


@pytest.fixture(scope="session")
def packed_files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    for name in FILE_NAMES:
        (folder / f"{name}.gz").write_bytes(gzip.compress(made_content(name), compresslevel=1))
    return folder


@pytest.fixture(autouse=True)
def nothing_installed_and_no_network(monkeypatch, tmp_path):
    def no_download(temporary):
        raise RuntimeError("no network in tests")

    monkeypatch.setattr(fashion_mnist_files, "INSTALLED_FOLDER", tmp_path / "not-installed")
    monkeypatch.setattr(fashion_mnist_files, "download", no_download)
    monkeypatch.setenv("PATH", str(tmp_path / "no-commands"))
    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.chdir(tmp_path)


def link_all(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        (target / path.name).symlink_to(path)


def fake_package_tools(folder: Path, packed_files: Path, monkeypatch) -> Path:
    """Put an apt-get and a dpkg-deb into PATH that behave like the real ones; return the log of apt-get's calls."""
    log = folder / "apt-get.log"
    unpacked = '"$3/usr/share/datasets/fashion-mnist"'
    scripts = {
        "apt-get": f'echo "$@" >> {log}; sleep 0.3; echo package > "$2_1_all.deb"',
        "dpkg-deb": f"mkdir -p {unpacked} && cp {packed_files}/*.gz {unpacked}",
    }
    for name, script in scripts.items():
        path = folder / name
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))
    return log


@pytest.mark.parametrize("place", [".", "fashion-mnist", "FashionMNIST/raw"])
def test_the_files_are_found_in_each_usual_place_of_the_data_folder(packed_files, tmp_path, place):
    link_all(packed_files, tmp_path / "images" / place)
    assert obtain_files(str(tmp_path / "images")) == tmp_path / "images" / place


def test_the_folder_is_data_dir_then_the_environment_then_data(packed_files, tmp_path, monkeypatch):
    for name in ("configured", "environment", "data"):
        link_all(packed_files, tmp_path / name)
    assert obtain_files(None) == Path("data")
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "environment"))
    assert obtain_files(None) == tmp_path / "environment"
    assert obtain_files(str(tmp_path / "configured")) == tmp_path / "configured"


def test_the_installed_package_is_used_where_the_data_folder_has_no_files(packed_files, monkeypatch):
    monkeypatch.setattr(fashion_mnist_files, "INSTALLED_FOLDER", packed_files)
    assert obtain_files("nowhere") == packed_files
    assert not Path("nowhere").exists()


def test_the_package_is_fetched_and_unpacked_into_the_data_folder(packed_files, tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    log = fake_package_tools(tools, packed_files, monkeypatch)
    folder = obtain_files(str(tmp_path / "images"))
    assert folder == tmp_path / "images" / "fashion-mnist"
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{name}.gz" for name in FILE_NAMES)
    assert log.read_text() == "download dataset-fashion-mnist\n"
    assert obtain_files(str(tmp_path / "images")) == folder
    assert log.read_text() == "download dataset-fashion-mnist\n", "files that are there must not be fetched again"
    left = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert left == [".fashion-mnist.lock", "fashion-mnist"], "temporary files must be gone"


def test_of_several_processes_only_one_fetches(packed_files, tmp_path, monkeypatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    log = fake_package_tools(tools, packed_files, monkeypatch)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        folders = pool.map(obtain_files, [str(tmp_path / "images")] * 3, chunksize=1)
    assert folders == [tmp_path / "images" / "fashion-mnist"] * 3
    assert log.read_text().count("download") == 1


def test_torchvisions_download_is_the_last_source(packed_files, tmp_path, monkeypatch):
    def download(temporary):
        link_all(packed_files, temporary / "raw")
        return temporary / "raw"

    monkeypatch.setattr(fashion_mnist_files, "download", download)
    folder = obtain_files(str(tmp_path / "images"))
    assert folder == tmp_path / "images" / "fashion-mnist"
    assert read_idx(folder / f"{EVAL_LABELS}.gz", (10_000,))[:3].tolist() == [0, 1, 2]


def test_the_error_says_what_was_tried_why_it_failed_and_how_to_supply_the_files(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / TRAIN_LABELS).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        obtain_files(str(tmp_path / "images"))
    message = str(caught.value)
    for part in (
        str(tmp_path / "images"), f"lacks {TRAIN_IMAGES}, {EVAL_IMAGES}, {EVAL_LABELS}", "no apt-get on this machine",
        "no network in tests", "data.dir", "DATA_DIR", "dataset-fashion-mnist", "--set data.name=generated",
        "--set data.dir=null",
    ):  # fmt: skip
        assert part in message


def test_a_failing_command_is_quoted_in_the_error(tmp_path, monkeypatch, packed_files):
    tools = tmp_path / "bin"
    tools.mkdir()
    fake_package_tools(tools, packed_files, monkeypatch)
    (tools / "apt-get").write_text("#!/bin/sh\necho E: Unable to locate package >&2\nexit 100\n")
    with pytest.raises(DataError, match="status 100: E: Unable to locate package"):
        obtain_files(str(tmp_path / "images"))


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/images: cannot be written to \(.*Not a directory"):
        obtain_files(str(tmp_path / "file" / "images"))


def test_images_and_labels_are_read_in_order_packed_or_not(packed_files, tmp_path):
    link_all(packed_files, tmp_path / "images")
    (tmp_path / "images" / TRAIN_LABELS).write_bytes(made_content(TRAIN_LABELS))
    (tmp_path / "images" / f"{TRAIN_LABELS}.gz").unlink()
    data_sets = build_datasets(DataConfig(name="fashion_mnist", dir=str(tmp_path / "images")), 0)
    assert (len(data_sets.train), len(data_sets.evaluation)) == (60_000, 10_000)
    assert (data_sets.num_classes, data_sets.channels, data_sets.image_size) == (10, 1, 28)
    for images, index in [(data_sets.train, (0, 59_999)), (data_sets.evaluation, 9_998)]:
        number = index[1] if isinstance(index, tuple) else index
        image, label = images[index]
        assert image.shape == (1, 28, 28) and label == number % 10 and type(label) is int
        assert image.unique().tolist() == [number % 251]


DAMAGE = {
    "cut short": lambda content: content[:-100],
    "too long": lambda content: content + b"x",
    "empty": lambda content: b"",
    "other magic number": lambda content: b"\0\0\x0d" + content[3:],
    "other count": lambda content: content[:4] + (9_999).to_bytes(4, "big") + content[8:],
    "a web page": lambda content: b"<html>404 Not Found</html>",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_damaged_file_is_named(tmp_path, damage, suffix):
    path = tmp_path / f"{EVAL_LABELS}{suffix}"
    content = damage(made_content(EVAL_LABELS))
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(DataError, match=f"{path} is damaged.*supply it again"):
        read_idx(path, (10_000,))


@pytest.mark.parametrize("keep", [0, 10, 1000, -1])
def test_a_cut_or_broken_gz_file_is_named(tmp_path, keep):
    path = tmp_path / f"{EVAL_LABELS}.gz"
    content = gzip.compress(np.random.default_rng(0).bytes(10_008))
    path.write_bytes(content[:keep])
    with pytest.raises(DataError, match=f"{path} is damaged"):
        read_idx(path, (10_000,))
    path.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    with pytest.raises(DataError, match=f"{path} is damaged"):
        read_idx(path, (10_000,))


def test_a_label_above_nine_is_refused(packed_files, tmp_path):
    link_all(packed_files, tmp_path / "images")
    content = bytearray(made_content(EVAL_LABELS))
    content[-1] = 10
    (tmp_path / "images" / EVAL_LABELS).write_bytes(content)
    with pytest.raises(DataError, match=f"{EVAL_LABELS} is damaged: it holds the label 10"):
        fashion_mnist.read_half(tmp_path / "images", "t10k")


def test_the_command_prints_the_folder_or_ends_with_status_3(packed_files, tmp_path, capsys):
    assert fashion_mnist.main(["--data-dir", str(packed_files)]) == 0
    assert capsys.readouterr().out == f"{packed_files}\n"
    assert fashion_mnist.main(["--data-dir", str(tmp_path / "nothing")]) == 3
    captured = capsys.readouterr()
    assert captured.out == "" and "tried:" in captured.err
