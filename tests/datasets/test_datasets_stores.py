"""Where shards are: what is noticed when they change, and what happens while their place does not answer."""

import asyncio
import hashlib
import json
import os
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Iterator, List

import fsspec
import pytest
from test_datasets_shards import contents, jpeg, shards_config, write_foreign, write_tar
from torch.utils.data import DataLoader

import train
from backends import image_loader
from datasets import DataError, build_datasets, check
from datasets.errors import StoreError
from datasets.shards import remote_store
from datasets.shards.image_shards import ShardImages
from datasets.shards.remote_store import version_of
from datasets.shards.scan import scan_shard
from experiment.guarded_loading import explained_loading

MEMORY = fsspec.filesystem("memory")
SLEEP = time.sleep
URL = "memory://stores"


@pytest.fixture(autouse=True)
def emptied() -> Iterator[None]:
    MEMORY.mkdirs("/stores", exist_ok=True)
    yield
    MEMORY.rm("/stores", recursive=True)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> List[float]:
    """Return the pauses that would have been made."""
    made: List[float] = []
    monkeypatch.setattr(remote_store.time, "sleep", made.append)
    return made


def upload(folder: Path) -> str:
    """Put a folder to where a URL finds it; return the URL."""
    for path in folder.iterdir():
        MEMORY.pipe_file(f"/stores/{path.name}", path.read_bytes())
    return URL


def relabel(folder: Path) -> None:
    """Exchange the two labels of the shard to train on: it keeps its size."""
    path = folder / "set-train-0.tar"
    size = path.stat().st_size
    write_tar(path, {"a/0.jpg": jpeg(0), "a/0.cls": b"1", "b/1.jpg": jpeg(1), "b/1.cls": b"0\n"})
    assert path.stat().st_size == size


OLD, NEW = (sorted([(jpeg(0), label), (jpeg(1), 1 - label)]) for label in (0, 1))


# Shards that change


def test_the_index_built_of_a_shard_is_built_anew_when_the_shard_has_changed(tmp_path):
    folder = write_foreign(tmp_path)
    assert contents(build_datasets(shards_config(folder), 0).train) == OLD
    relabel(folder)
    assert contents(build_datasets(shards_config(folder), 0).train) == NEW


def test_an_index_without_a_version_is_built_anew(tmp_path):
    folder = write_foreign(tmp_path)
    build_datasets(shards_config(folder), 0)
    index = folder / "set-train-0.tar.index"
    first, *rows = index.read_text().split("\n")
    index.write_text("\n".join([first.rpartition("\t")[0], *rows]).replace("\t0\ta/0", "\t1\ta/0"))
    assert contents(build_datasets(shards_config(folder), 0).train) == OLD
    assert index.read_text().split("\n") == [first, *rows]


@pytest.mark.parametrize("with_index", [False, True], ids=["index built here", "index at its place"])
def test_a_cached_copy_of_another_version_is_copied_again(tmp_path, with_index):
    folder = write_foreign(tmp_path / "foreign")
    if with_index:
        write_indices(folder)
    config = shards_config(upload(folder), cache_dir=str(tmp_path / "cache"))
    assert contents(build_datasets(config, 0).train) == OLD
    relabel(folder)
    if with_index:
        write_indices(folder)
    upload(folder)
    assert contents(build_datasets(config, 0).train) == NEW
    (copy,) = (tmp_path / "cache").rglob("set-train-0.tar")
    assert copy.read_bytes() == (folder / "set-train-0.tar").read_bytes()


def test_a_shard_that_is_gone_from_its_place_is_not_taken_from_the_cache(tmp_path):
    folder = write_foreign(tmp_path / "foreign")
    (folder / "set-train-1.tar").write_bytes((folder / "set-train-0.tar").read_bytes())
    config = shards_config(upload(folder), cache_dir=str(tmp_path / "cache"))
    assert len(contents(build_datasets(config, 0).train)) == 4
    MEMORY.rm("/stores/set-train-1.tar")
    assert len(contents(build_datasets(config, 0).train)) == 2


def write_indices(folder: Path) -> None:
    """Write indices with sums, as packing does."""
    for path in folder.glob("*.tar"):
        with open(path, "rb") as file:
            index = replace(scan_shard(path.name, file), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        (folder / f"{path.name}.index").write_bytes(index.content())


def test_the_check_reads_shards_without_sums_again(tmp_path):
    folder = write_foreign(tmp_path)
    config = shards_config(folder)
    assert not check.check(config, workers=0).errors
    path = folder / "set-train-0.tar"
    time = path.stat().st_mtime_ns
    relabel(folder)
    os.utime(path, ns=(time, time))  # a change that no version tells
    report = check.check(config, workers=0)
    assert report.errors and "train: 1 shard, 1 of them without a sum" in report.lines
    assert f"  {path}: its images or labels differ from its index; remove the index" in report.lines


def test_the_check_reads_shards_at_a_url(tmp_path):
    folder = write_foreign(tmp_path)
    write_indices(folder)
    config = shards_config(upload(folder))
    assert not check.check(config, workers=0).errors
    relabel(folder)
    MEMORY.pipe_file("/stores/set-train-0.tar", (folder / "set-train-0.tar").read_bytes())
    report = check.check(config, workers=0)
    assert "error: train: shards that have changed: 1" in report.lines


@pytest.mark.parametrize(
    ("told", "other"),
    [
        ({"ETag": '"a"', "LastModified": 1}, {"ETag": '"b"', "LastModified": 1}),
        ({"md5Hash": "x"}, {"md5Hash": "y"}),
        ({"Last-Modified": "Mon"}, {"Last-Modified": "Tue"}),
        ({"mtime": 1.5, "created": 1}, {"mtime": 2.5, "created": 1}),
    ],
)
def test_a_version_follows_what_the_place_tells_about_the_content(told, other):
    assert version_of({"size": 1, **told}) == version_of({"size": 1, "atime": 3, **told}) != version_of(other)
    assert version_of({"size": 1, "name": "x"}) == "-"


# Indices that are kept, and that cannot be


def test_an_index_reaches_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    folder, events = write_foreign(tmp_path), []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr("datasets.shards.image_shards.REQUESTS_AT_ONCE", 1)
    is_file = lambda file: stat.S_ISREG(os.fstat(file).st_mode)  # noqa: E731  the folder is synced too
    monkeypatch.setattr(os, "fsync", lambda file: (is_file(file) and events.append(os.fstat(file).st_size), sync(file)))
    monkeypatch.setattr(os, "replace", lambda source, target: (events.append(target.name), rename(source, target)))
    build_datasets(shards_config(folder), 0)
    names = [f"set-{half}-0.tar.index" for half in ("train", "val")]
    assert events == [event for name in names for event in ((folder / name).stat().st_size, name)]


def refuse(*arguments: object, **options: object) -> None:
    raise PermissionError(13, "Permission denied", "/somewhere/.part-x")


@pytest.mark.parametrize("place", ["a folder", "a URL"])
def test_an_index_that_cannot_be_kept_is_said_once(tmp_path, monkeypatch, caplog, place):
    folder = write_foreign(tmp_path)
    config = shards_config(folder if place == "a folder" else upload(folder))
    with monkeypatch.context() as patch:
        patch.setattr("configs.atomic_file.open_without_following", refuse)
        for _ in range(2):
            caplog.clear()
            assert contents(build_datasets(config, 0).train) == OLD
            (said,) = (record.message for record in caplog.records if "cannot be saved" in record.message)
            reason = "Permission denied" if place == "a folder" else "data.cache_dir is not set"
            assert said.startswith(f"the index of 2 shards cannot be saved ({reason}): each start reads these shards")
    caplog.clear()
    assert contents(build_datasets(shards_config(folder), 0).train) == OLD
    assert "cannot be saved" not in caplog.text and "building the index of 2 shards" in caplog.text


# Places that do not answer


class ServerError(Exception):
    """Of a class that only the file system knows, as aiohttp's and gcsfs's are."""


def failing(monkeypatch: pytest.MonkeyPatch, method: str, times: int, error: Exception) -> None:
    """Let the first calls of a method fail."""
    original = getattr(type(MEMORY), method)
    left = iter(range(times))

    def fail_first(self: object, *arguments: Any, **options: Any) -> Any:
        if next(left, None) is not None:
            raise error
        return original(self, *arguments, **options)

    monkeypatch.setattr(type(MEMORY), method, fail_first)


@pytest.mark.parametrize("error", [ServerError(503), asyncio.TimeoutError(), ConnectionResetError(104, "reset")])
@pytest.mark.parametrize("method", ["ls", "cat_file", "get_file"])
def test_a_request_that_fails_is_made_again_after_growing_pauses(tmp_path, monkeypatch, pauses, caplog, method, error):
    options = {"cache_dir": str(tmp_path / "cache")} if method == "get_file" else {}
    config = shards_config(upload(write_foreign(tmp_path / "foreign")), **options)
    monkeypatch.setattr(
        "datasets.shards.image_shards.REQUESTS_AT_ONCE", 1
    )  # the same request fails twice, not two at once
    failing(monkeypatch, method, 2, error)
    assert contents(build_datasets(config, 0).train) == OLD
    assert pauses == [1.0, 4.0]
    assert f"{type(error).__name__}: {error}; trying again in 4 s" in caplog.text


def test_a_place_that_stays_away_is_an_error_of_the_data(tmp_path, monkeypatch, pauses):
    config = shards_config(upload(write_foreign(tmp_path)))
    failing(monkeypatch, "ls", 100, ServerError("no such luck"))
    with pytest.raises(DataError, match="memory://stores/: cannot be read: failed 4 times, at last with ServerError"):
        build_datasets(config, 0)
    assert pauses == [1.0, 4.0, 16.0]


def test_what_is_missing_or_forbidden_is_not_asked_for_again(tmp_path, monkeypatch, pauses):
    images = build_datasets(shards_config(upload(write_foreign(tmp_path))), 0).train
    for error in (FileNotFoundError(2, "No such file"), PermissionError(13, "Permission denied")):
        failing(monkeypatch, "cat_file", 1, error)
        with pytest.raises(StoreError, match=f"cannot be read: {error.strerror}"):
            images.source.load(0)
    assert pauses == []


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("with_cache", [False, True], ids=["ranged reads", "cache"])
def test_a_place_that_fails_is_no_unreadable_image(tmp_path, monkeypatch, workers, with_cache):
    folder = write_foreign(tmp_path / "foreign")
    write_indices(folder)
    options = {"cache_dir": str(tmp_path / "cache")} if with_cache else {}
    images = build_datasets(shards_config(upload(folder), max_corrupt=2, **options), 0).train
    failing(monkeypatch, "get_file" if with_cache else "cat_file", 100, ServerError(503))
    message = r"memory://stores/set-train-0\.tar, a/0\.jpg \(class 0\): cannot be read: failed 4 times, .*: 503$"
    with pytest.raises(DataError, match=message) as caught, explained_loading():
        list(DataLoader(images, batch_size=1, sampler=[(0, 0)], num_workers=workers))
    assert images.corrupt == 0 and str(caught.value).startswith("in loading process 0: " if workers else URL)


def test_a_shard_that_is_gone_is_no_unreadable_image(tmp_path):
    folder = write_foreign(tmp_path)
    images = build_datasets(shards_config(folder, max_corrupt=2), 0).train
    (folder / "set-train-0.tar").unlink()
    with pytest.raises(StoreError, match="cannot be read: No such file"):
        _ = images[0, 0]


@pytest.mark.parametrize("with_cache", [True, False], ids=["cache", "ranged reads"])
def test_copying_shards_is_not_taken_for_hanging(tmp_path, monkeypatch, with_cache):
    folder = write_foreign(tmp_path / "foreign")
    write_indices(folder)
    options = {"cache_dir": str(tmp_path / "cache")} if with_cache else {}
    images = build_datasets(shards_config(upload(folder), **options), 0).train
    monkeypatch.setattr(image_loader, "TIMEOUT_SECONDS", 1)
    method = "get_file" if with_cache else "cat_file"
    original = getattr(type(MEMORY), method)

    def slow(*arguments: Any, **options: Any) -> Any:
        SLEEP(3)
        return original(*arguments, **options)

    monkeypatch.setattr(type(MEMORY), method, slow)
    loader = image_loader.build_loader(images, [[(0, 0), (0, 1)]], workers=1)
    if with_cache:
        assert [labels.tolist() for _, labels in loader] == [[0, 1]]
        assert image_loader.build_loader(images, [[(0, 0)]], workers=1).timeout == 1  # all is copied
    else:
        with pytest.raises(DataError, match="no images for 1 seconds: a loading process hangs"), explained_loading():
            list(loader)


def test_a_run_whose_place_goes_away_ends_with_code_3_and_can_be_continued(tmp_path):
    arguments = ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(tmp_path / "run")]
    for setting in (
        "data.name=image_shards", f"data.dir={upload(write_foreign(tmp_path / 'shards'))}", "data.num_classes=null",
        "data.num_train_images=null", "data.num_eval_images=null", "data.crop_padding=null", "data.min_crop_area=0.3",
        "data.max_corrupt=2", "batch.global_batch_size=2", "schedule.epochs=2", "model.width=4",
    ):  # fmt: skip
        arguments += ["--set", setting]
    with pytest.MonkeyPatch.context() as patch:
        load = ShardImages.load

        def load_until_saved(self: ShardImages, index: int) -> Any:
            if list((tmp_path / "run" / "checkpoints").glob("*.pt")):
                failing(patch, "cat_file", 100, ServerError(503))
            return load(self, index)

        patch.setattr(ShardImages, "load", load_until_saved)
        assert train.main(arguments) == 3
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    assert train.main([*arguments, "--resume"]) == 0
