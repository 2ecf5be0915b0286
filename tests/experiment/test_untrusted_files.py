"""Readers of texts and images: a pickle in their place, and tags of Python, are errors and not run."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any, Callable, List

import pytest
from PIL import Image
from planted_code import (
    Payload,
    bare_pickle,
    odd_name,
)

from analysis.curves import read_records
from analysis.results_file import read_results
from configs import ConfigError, load_config
from configs.schema import DataConfig
from datasets import DataError, build_datasets
from datasets.idx import read_idx
from datasets.images.encoded_image import EncodedImage
from datasets.shards.index import parse_index
from experiment.metrics_log import MetricsLog
from training.weights import CheckpointError


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['{command}']", "!!python/name:os.system ''"])
def test_tags_of_python_in_a_configuration_are_refused_and_not_run(tmp_path: Path, text: str) -> None:
    canary, path = tmp_path / "canary", tmp_path / "config.yaml"
    text = text.format(command=f"touch {canary}")
    path.write_text(f"model:\n  name: {text}\n")
    with pytest.raises(ConfigError):
        load_config(str(path))
    with pytest.raises(ConfigError):
        load_config("generated_smoke", [f"model.name={text}"])
    assert not canary.exists()


def pickle_in_text(canary: Path) -> bytes:
    return pickle.dumps(Payload(canary), protocol=0)


@pytest.mark.parametrize("make", [bare_pickle, pickle_in_text, odd_name], ids=lambda make: make.__name__)
def test_a_pickle_in_the_place_of_a_text_or_an_image_is_an_error_and_not_run(
    tmp_path: Path, make: Callable[[Path], bytes]
) -> None:
    canary, path = tmp_path / "canary", tmp_path / "x"
    path.write_bytes(make(canary))
    readers: List[Callable[[], Any]] = [
        lambda: parse_index("x.tar", path.read_bytes()),
        lambda: EncodedImage(path.read_bytes(), "x.jpg").pixels(),
        lambda: read_idx(path, (3,)),
        lambda: read_results(path),
        lambda: read_records(path),
        lambda: MetricsLog(path).truncate_after(0, 0),
        lambda: load_config(str(path)),
        lambda: build_datasets(shards_of(tmp_path, make(canary)), 0),
    ]
    for read in readers:
        with contextlib.suppress(DataError, ConfigError, CheckpointError, ValueError, OSError):
            read()
        assert not canary.exists()


def shards_of(folder: Path, content: bytes) -> DataConfig:
    """Return a data set whose shards hold the content as images, labels, index and names of classes."""
    place = folder / "shards"
    place.mkdir(exist_ok=True)
    for half in ("train", "val"):
        with tarfile.open(place / f"{half}-0.tar", "w") as tar:
            for name in ("a.jpg", "a.json", "a.cls", "a.pkl", "a.pyd"):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        (place / f"{half}-0.tar.index").write_bytes(content)
    (place / "classes.txt").write_bytes(content)
    return DataConfig(name="image_shards", dir=str(place))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_pickle_in_the_place_of_cifars_is_refused_for_its_sum_and_not_run(tmp_path: Path, name: str) -> None:
    canary = tmp_path / "canary"
    for folder in ("cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / folder).mkdir()
        for file in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
            (tmp_path / folder / file).write_bytes(bare_pickle(canary))
        for file in ("train", "test", "meta"):
            (tmp_path / folder / file).write_bytes(bare_pickle(canary))
    with pytest.raises(DataError, match=r"MD5|sum"):
        build_datasets(DataConfig(name=name, dir=str(tmp_path)), 0)
    assert not canary.exists()


def gif_of(width: int, height: int) -> bytes:
    """Return a picture of 4 x 4 whose screen is said to be larger."""
    buffer = io.BytesIO()
    Image.new("P", (4, 4)).save(buffer, "GIF")
    data = bytearray(buffer.getvalue())
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def webp_of(width: int, height: int) -> bytes:
    """Return a picture of 4 x 4 on a canvas that is said to be larger."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "WEBP", lossless=True)
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size + buffer.getvalue()[12:]
    return b"RIFF" + struct.pack("<I", len(body)) + body


def tiff_of(width: int, height: int) -> bytes:
    """Return a picture of 4 x 4 whose tags ImageWidth and ImageLength say more."""
    buffer = io.BytesIO()
    Image.new("L", (4, 4)).save(buffer, "TIFF", compression="tiff_lzw")
    data = bytearray(buffer.getvalue())
    first = struct.unpack("<I", data[4:8])[0]
    for entry in range(first + 2, first + 2 + 12 * struct.unpack("<H", data[first : first + 2])[0], 12):
        tag = struct.unpack("<H", data[entry : entry + 2])[0]
        if tag in (256, 257):
            data[entry + 2 : entry + 4] = struct.pack("<H", 4)
            data[entry + 8 : entry + 12] = struct.pack("<I", {256: width, 257: height}[tag])
    return bytes(data)


@pytest.mark.parametrize("make", [gif_of, webp_of, tiff_of])
@pytest.mark.parametrize("side", [9500, 16000])  # over this program's limit, and over Pillow's own
def test_a_small_file_that_claims_a_large_picture_is_refused_by_its_header(
    make: Callable[[int, int], bytes], side: int
) -> None:
    """Of the WebP, Pillow's decoder says so itself: the picture inside does not fill the canvas."""
    with pytest.raises(DataError, match=r"pixels|could not create decoder object"):
        EncodedImage(make(side, side), "x.img").pixels()
