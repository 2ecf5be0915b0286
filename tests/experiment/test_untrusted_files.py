"""Readers of texts and images: a pickle in their place, and tags of Python, are errors and not run."""

from __future__ import annotations

import contextlib
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any, Callable, List

import pytest
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
    """A data set whose shards hold the content as images, labels, index and names of classes."""
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
