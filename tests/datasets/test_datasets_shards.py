"""Shards: tar files in WebDataset's layout, from a folder and from URLs, ours and those of others."""

import gzip
import hashlib
import io
import json
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_images import encoded, save_noise, write_image_folder
from PIL import Image
from torch.utils.data import DataLoader

import train
from configs.batch import BatchPlan
from configs.errors import ConfigError
from configs.schema import DataConfig
from datasets import DataError, build_datasets, pack
from datasets.shards.index import FORMAT, parse_index
from datasets.shards.scan import parse_label, scan_shard, split_name
from experiment.checkpoint import load_checkpoint
from training.order import EvaluationBatches, TrainingBatches

NUM_TRAIN, NUM_EVAL = 6, 4


def shards_config(folder: object, **options: Any) -> DataConfig:
    return DataConfig(name="image_shards", dir=str(folder), **{"image_size": 16, "min_crop_area": 0.3, **options})


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write_image_folder(tmp_path / "folder")
    save_noise(folder / "train" / "bee" / "2.jpg", seed=3)  # in place of a file that is there
    (folder / "train" / "bee" / "2.jpg").rename(folder / "train" / "bee" / "two.of.two.JPEG")
    return folder


@pytest.fixture
def shards(source: Path, tmp_path: Path) -> Path:
    """Three shards to train on and two to evaluate on: a noise JPEG has about 3 kB."""
    pack.pack(source, tmp_path / "shards", shard_bytes=6000, seed=0)
    assert len(list((tmp_path / "shards").glob("*.tar"))) == 5
    return tmp_path / "shards"


def contents(images: Any) -> List[Tuple[bytes, int]]:
    """Return the files and labels of a half, in an order of their own."""
    loaded = [images.source.load(index) for index in range(len(images))]
    return sorted((image.content, label) for image, label in loaded)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def jpeg(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels), "JPEG").getvalue()


def write_tar(path: Path, members: Dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            add(tar, name, content)
    return path


def write_foreign(folder: Path, train: Optional[Dict[str, bytes]] = None) -> Path:
    """Shards without index or classes, whose labels are in .cls."""
    both = {"a/0.jpg": jpeg(0), "a/0.cls": b"0", "b/1.jpg": jpeg(1), "b/1.cls": b"1\n"}
    write_tar(folder / "set-train-0.tar", both if train is None else train)
    write_tar(folder / "set-val-0.tar", both)
    return folder


# Ours


def test_shards_hold_the_files_labels_and_classes_of_their_folder(source, shards):
    packed = build_datasets(shards_config(shards), 0)
    folder = build_datasets(DataConfig(name="image_folder", dir=str(source), image_size=16), 0)
    assert packed.class_names == folder.class_names == ("ant", "bee")
    assert (len(packed.train), len(packed.evaluation)) == (NUM_TRAIN, NUM_EVAL)
    assert contents(packed.train) == contents(folder.train)
    assert contents(packed.evaluation) == contents(folder.evaluation)
    image, label = packed.train[3, 4]
    assert image.shape == (3, 16, 16) and image.dtype == torch.uint8 and type(label) is int


def test_an_index_tells_place_length_label_and_sum(shards):
    for path in shards.glob("*.tar"):
        index = parse_index(path.name, (shards / f"{path.name}.index").read_bytes())
        content = path.read_bytes()
        assert (index.num_bytes, index.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            names = [member.name for member in members if not member.name.endswith(".cls")]
            assert list(index.names) == names and len(members) == 2 * len(names)
            for offset, length, label, name in zip(index.offsets, index.lengths, index.labels, index.names):
                assert content[offset : offset + length] == tar.extractfile(name).read()
                assert int(tar.extractfile(name.split(".")[0] + ".cls").read()) == label


def test_scanning_finds_what_packing_wrote(shards):
    for path in shards.glob("*.tar"):
        written = parse_index(path.name, (shards / f"{path.name}.index").read_bytes())
        with open(path, "rb") as file:
            found = scan_shard(path.name, file)
        assert found.content().splitlines()[1:] == written.content().splitlines()[1:]


def test_the_same_folder_and_seed_give_the_same_bytes_and_another_seed_another_order(source, shards, tmp_path):
    def files(folder: Path) -> Dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    pack.pack(source, tmp_path / "again", shard_bytes=6000, seed=0)
    pack.pack(source, tmp_path / "other", shard_bytes=6000, seed=1)
    assert files(tmp_path / "again") == files(shards) != files(tmp_path / "other")
    config = [shards_config(tmp_path / name) for name in ("again", "other")]
    first, second = (build_datasets(each, 0) for each in config)
    assert contents(first.train) == contents(second.train) and first.fingerprint != second.fingerprint


def test_names_with_dots_and_other_letters_make_keys_without(tmp_path):
    for half in ("train", "val"):
        for class_name in ("n.1", "ü 2"):
            save_noise(tmp_path / "odd" / half / class_name / "a.b.c.PNG")
    pack.pack(tmp_path / "odd", tmp_path / "shards", 1 << 20, 0)
    with tarfile.open(tmp_path / "shards" / "train-000000.tar") as tar:
        names = sorted(name[9:] for name in tar.getnames())
    assert names == ["__2_a_b_c.cls", "__2_a_b_c.png", "n_1_a_b_c.cls", "n_1_a_b_c.png"]
    assert build_datasets(shards_config(tmp_path / "shards"), 0).class_names == ("n.1", "ü 2")


def test_the_command_packs_and_says_what_it_wrote(source, tmp_path, capsys):
    assert pack.main([str(source), str(tmp_path / "new")]) == 0
    assert "train-000000.tar: 6 images" in capsys.readouterr().out
    assert pack.main([str(source), str(tmp_path / "new")]) == 3
    assert "is not empty" in capsys.readouterr().err
    assert pack.main([str(tmp_path / "nowhere"), str(tmp_path / "other")]) == 3
    assert "nowhere" in capsys.readouterr().err
    assert pack.main([str(source), str(source / "train" / "ant" / "0.jpg")]) == 74


def test_a_file_that_cannot_be_read_leaves_no_half_shard(source, tmp_path):
    (source / "val" / "ant" / "1.jpg").write_text("<html>")
    with pytest.raises(DataError, match=r"1\.jpg \(class ant\): cannot be used"):
        pack.pack(source, tmp_path / "new", 6000, 0)
    left = sorted(path.name for path in (tmp_path / "new").iterdir() if path.name.startswith("val"))
    assert all((tmp_path / "new" / f"{name}.index").exists() for name in left if name.endswith(".tar"))
    assert not list((tmp_path / "new").glob(".part-*")) and not (tmp_path / "new" / "classes.txt").exists()
    # The shards that are whole would make a smaller data set: nobody is to train on it by mistake.
    with pytest.raises(DataError, match="unfinished: these shards are being packed"):
        build_datasets(DataConfig(name="image_shards", dir=str(tmp_path / "new")), 0)


# Like any data set


@pytest.mark.parametrize(("workers", "method"), [(0, None), (2, "fork"), (1, "spawn")])
def test_any_number_of_loading_processes_gives_the_same_images(shards, workers, method):
    train = build_datasets(shards_config(shards), 5).train
    keys = [(epoch, index) for epoch in range(2) for index in reversed(range(NUM_TRAIN))]
    loader: DataLoader[Any] = DataLoader(
        train, batch_size=4, sampler=keys, num_workers=workers, multiprocessing_context=method
    )
    images, labels = (torch.cat(parts) for parts in zip(*loader))
    assert torch.equal(images, torch.stack([train[key][0] for key in keys]))
    assert labels.tolist() == [train[key][1] for key in keys]


def test_two_processes_have_every_image_once_between_them(shards):
    data_sets = build_datasets(shards_config(shards), 0)
    plan = BatchPlan(2, 1, 1, 1, 2, 1, 1)  # global batches of 2: one image for each of 2 replicas
    trained = [batch for process in range(2) for batch in TrainingBatches(NUM_TRAIN, plan, process, seed=0, epoch=3)]
    seen = sorted(data_sets.train.source.load(index)[0].content for batch in trained for _, index in batch)
    assert seen == [content for content, _ in contents(data_sets.train)]
    evaluated = [batch for process in range(2) for batch in EvaluationBatches(NUM_EVAL, 3, process, 2)]
    seen = sorted(data_sets.evaluation.source.load(index)[0].content for batch in evaluated for index in batch)
    assert seen == [content for content, _ in contents(data_sets.evaluation)]


@pytest.mark.parametrize("shuffle_shards", ["null", "1"])
def test_a_run_continues_at_the_image_where_it_stopped(shards, tmp_path, shuffle_shards):
    arguments = ["--config", "generated_smoke", "--device", "cpu", "--set", f"data.dir={shards}"]
    arguments += ["--set", f"data.shuffle_shards={shuffle_shards}"]
    for setting in (
        "data.name=image_shards", "data.num_classes=null", "data.num_train_images=null", "data.num_eval_images=null",
        "data.crop_padding=null", "data.min_crop_area=0.3", "batch.global_batch_size=2", "run.checkpoint_every_steps=1",
        "schedule.epochs=2", "model.width=4",
    ):  # fmt: skip
        arguments += ["--set", setting]
    assert train.main([*arguments, "--output-dir", str(tmp_path / "whole")]) == 0
    # stopped in the midst of the second epoch: 3 steps each
    for name in ("step_00000004.pt", "step_00000004.json"):
        target = tmp_path / "resumed" / "checkpoints" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((tmp_path / "whole" / "checkpoints" / name).read_bytes())
    resumed = [*arguments, "--output-dir", str(tmp_path / "resumed"), "--set", "data.workers=2", "--resume"]
    assert train.main(resumed) == 0
    last = [tmp_path / name / "checkpoints" / "step_00000006.pt" for name in ("whole", "resumed")]
    whole, again = (load_checkpoint(path)["model"] for path in last)
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_reading_leaves_no_file_open(shards):
    data_sets = build_datasets(shards_config(shards), 0)
    before = len(os.listdir("/proc/self/fd"))
    for index in range(NUM_TRAIN):
        _ = data_sets.train[0, index]
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_fingerprint_follows_the_images_and_not_their_place(shards, tmp_path):
    original = build_datasets(shards_config(shards), 0).fingerprint
    shards.rename(tmp_path / "moved")
    assert build_datasets(shards_config(tmp_path / "moved", image_size=20), 1).fingerprint == original
    (tmp_path / "moved" / "train-000002.tar").unlink()
    assert build_datasets(shards_config(tmp_path / "moved"), 0).fingerprint != original


# Those of others


def test_shards_without_index_are_read_and_the_index_is_kept(tmp_path):
    folder = write_foreign(tmp_path)
    first = build_datasets(shards_config(folder), 0)
    assert first.class_names == ("0", "1")
    assert contents(first.train) == sorted([(jpeg(0), 0), (jpeg(1), 1)])
    assert (folder / "set-train-0.tar.index").read_text().startswith(f"{FORMAT}\t")
    (folder / "classes.txt").write_text("cat\ndog\n")
    second = build_datasets(shards_config(folder), 0)
    assert second.class_names == ("cat", "dog") and contents(second.train) == contents(first.train)


def test_shards_of_a_folder_that_cannot_be_written_are_read(tmp_path, monkeypatch):
    folder = write_foreign(tmp_path)

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("datasets.shards.store.replace_file", refuse)
    assert len(build_datasets(shards_config(folder), 0).train) == 2
    assert not list(folder.glob("*.index"))


def test_shards_in_folders_named_after_the_halves_are_found(tmp_path):
    write_foreign(tmp_path / "flat")
    for half in ("train", "val"):
        (tmp_path / half).mkdir()
        (tmp_path / "flat" / f"set-{half}-0.tar").rename(tmp_path / half / "0.tar")
    data_sets = build_datasets(shards_config(tmp_path), 0)
    assert (len(data_sets.train), len(data_sets.evaluation)) == (2, 2)


@pytest.mark.parametrize("label_member", ["cls", "json"])
def test_what_webdataset_writes_is_read(tmp_path, label_member):
    webdataset = pytest.importorskip("webdataset")
    for half in ("train", "val"):
        with webdataset.ShardWriter(str(tmp_path / f"{half}-%03d.tar"), maxcount=2, verbose=0) as writer:
            for number in range(5):
                label = {"cls": number % 3} if label_member == "cls" else {"json": {"label": number % 3}}
                writer.write({"__key__": f"sample{number}", "jpg": jpeg(number), "txt": "a caption", **label})
    data_sets = build_datasets(shards_config(tmp_path), 0)
    assert contents(data_sets.train) == sorted((jpeg(number), number % 3) for number in range(5))


def test_webdataset_reads_what_is_packed_here(source, shards):
    webdataset = pytest.importorskip("webdataset")
    paths = [str(path) for path in sorted(shards.glob("train-*.tar"))]
    samples = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode("pil")
    found = sorted((sample.get("jpg", sample.get("jpeg")).size, sample["cls"]) for sample in samples)
    assert found == [((40, 30), 0)] * 3 + [((40, 30), 1)] * 3


LABELS = [
    (b"7", ".cls", 7), (b" 12\n", ".txt", 12), (b"a dog", ".txt", None), (b"-1", ".cls", None), (b"", ".cls", None),
    (b'{"label": 3, "cls": 4}', ".json", 3), (b'{"cls": 4}', ".json", 4), (b'{"label": "cat"}', ".json", None),
    (b'{"label": true}', ".json", None), (b"[3]", ".json", None), (b"{", ".json", None),
]  # fmt: skip


@pytest.mark.parametrize(("content", "extension", "label"), LABELS)
def test_labels_are_read_by_the_documented_conventions(content, extension, label):
    assert parse_label(content, extension) == label


def test_a_label_beside_a_caption_is_found(tmp_path):
    members = {"0.jpg": jpeg(), "0.txt": b"a caption", "0.json": json.dumps({"label": 1}).encode()}
    folder = write_foreign(tmp_path, members)
    assert build_datasets(shards_config(folder), 0).train[0, 0][1] == 1


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("0001.jpg", "0001", ".jpg"), ("a/b.seg.PNG", "a/b", ".seg.png"), ("a.b/c.cls", "a.b/c", ".cls"),
        ("./x/noextension", "./x/noextension", ""),
    ],
)  # fmt: skip
def test_keys_end_at_the_first_dot_of_the_file_name(name, key, extension):
    assert split_name(name) == (key, extension)


@given(
    groups=st.lists(
        st.tuples(st.booleans(), st.integers(0, 9), st.sampled_from([".jpg", ".png", ".JPEG"]), st.booleans()),
        min_size=1, max_size=6,
    ),
    long_name=st.booleans(),
)  # fmt: skip
def test_any_order_of_members_within_a_key_is_read(groups, long_name):
    buffer, expected = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, (label_first, label, extension, with_extra) in enumerate(groups):
            key = f"{'folder' * 30 if long_name else 'f'}/{number}"
            members = [(key + extension, b"x" * (number + 1)), (f"{key}.cls", str(label).encode())]
            members += [(f"{key}.seg.png", b"another image")] if with_extra else []
            for name, content in reversed(members) if label_first else members:
                add(tar, name, content)
            expected.append((number + 1, label, key + extension))
    index = scan_shard("made.tar", io.BytesIO(buffer.getvalue()))
    assert list(zip(index.lengths.tolist(), index.labels.tolist(), index.names)) == expected
    for offset, length in zip(index.offsets, index.lengths):
        assert buffer.getvalue()[offset : offset + length] == b"x" * length
    assert parse_index("made.tar", index.content()).content() == index.content()


# Faults


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def compress(path: Path) -> None:
    path.write_bytes(gzip.compress(path.read_bytes()))


FOREIGN_FAULTS = {
    "no shards": (lambda f: [path.unlink() for path in f.glob("*")], "no images to train on and evaluate on"),
    "half without shards": (lambda f: (f / "set-val-0.tar").unlink(), "no images to evaluate on"),
    "a name of no half": (
        lambda f: (f / "set-train-0.tar").rename(f / "0.tar"), r"0\.tar: its name says neither train nor val",
    ),
    "a name of both": (
        lambda f: (f / "set-train-0.tar").rename(f / "train-val.tar"), r"train-val\.tar: its name says train and val",
    ),
    "compressed": (lambda f: compress(f / "set-train-0.tar"), r"set-train-0\.tar: not an uncompressed tar file"),
    "text": (lambda f: (f / "set-val-0.tar").write_text("x" * 2000), r"set-val-0\.tar: not an uncompressed tar file"),
    "cut": (lambda f: cut(f / "set-train-0.tar", 0.1), r"set-train-0\.tar: .*(cut short|damaged)"),
    "no image": (lambda f: write_tar(f / "set-train-0.tar", {"a.seg": b"0"}), "no image in it"),
    "no label": (lambda f: write_tar(f / "set-train-0.tar", {"a.jpg": b"x"}), r"a\.jpg has no label"),
    "two images": (
        lambda f: write_tar(f / "set-train-0.tar", {"a.jpg": b"x", "a.png": b"x"}),
        r"a\.jpg has the images \.jpg \.png",
    ),
    "label beyond the classes": (
        lambda f: (
            (f / "classes.txt").write_text("cat\ndog\n"),
            write_tar(f / "set-val-0.tar", {"a.jpg": b"x", "a.cls": b"2"}),
        ),
        r"set-val-0\.tar: the label 2 is beyond the 2 classes",
    ),
    "one class": (
        lambda f: [write_tar(path, {"a.jpg": b"x", "a.cls": b"0"}) for path in f.glob("*.tar")],
        "1 classes; a classifier",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "message"), FOREIGN_FAULTS.values(), ids=FOREIGN_FAULTS)
def test_shards_of_another_layout_are_refused_at_construction(tmp_path, fault, message):
    folder = write_foreign(tmp_path / "shards")
    fault(folder)
    with pytest.raises(DataError, match=message):
        build_datasets(shards_config(folder), 0)


INDEX_FAULTS = {
    "shard cut": (lambda f: cut(f / "train-000001.tar", 0.6), r"train-000001\.tar: it has \d+ bytes and its index"),
    "another format": (lambda f: (f / "train-000001.tar.index").write_text("{}"), "is damaged or a different file"),
    "empty": (lambda f: (f / "train-000001.tar.index").write_text(""), "is damaged or a different file"),
    "cut line": (lambda f: cut(f / "train-000001.tar.index", 0.9), "cut short: it has 1 whole lines, expected 2"),
    "outside": (
        lambda f: (f / "train-000001.tar.index").write_text(f"{FORMAT}\t99\t-\t1\n90\t10\t0\ta.jpg\n"), "lies outside",
    ),
    "negative label": (
        lambda f: (f / "train-000001.tar.index").write_text(f"{FORMAT}\t99\t-\t1\n0\t10\t-1\ta.jpg\n"),
        "the label is -1",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "message"), INDEX_FAULTS.values(), ids=INDEX_FAULTS)
def test_an_index_that_does_not_fit_its_shard_is_refused(shards, fault, message):
    fault(shards)
    with pytest.raises(DataError, match=message):
        build_datasets(shards_config(shards), 0)


def test_a_damaged_image_is_named_with_shard_member_and_class(shards):
    data_sets = build_datasets(shards_config(shards), 0)
    source: Any = data_sets.train.source
    path = shards / source.shards[0]
    content = bytearray(path.read_bytes())
    content[source.offsets[0] + 20 : source.offsets[0] + source.lengths[0]] = bytes(int(source.lengths[0]) - 20)
    path.write_bytes(content)
    label = int(source.labels[0])
    with pytest.raises(DataError) as caught:
        _ = data_sets.train[0, 0]
    name = source.names[0].decode()
    assert f"{path}, {name} (class {data_sets.class_names[label]}): cannot be used: " in str(caught.value)
    path.write_bytes(content[: source.offsets[0] + 100])
    with pytest.raises(DataError, match=r"the shard gave 100 bytes of \d+: it is cut short"):
        _ = data_sets.train[0, 0]
    path.unlink()
    with pytest.raises(DataError, match="No such file"):
        _ = data_sets.train[0, 0]


# At URLs


@pytest.fixture
def url(shards) -> Any:
    """Give the shards in fsspec's memory: a place without files."""
    memory = fsspec.filesystem("memory")
    for path in shards.iterdir():
        memory.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
    yield "memory://bucket/set"
    memory.rm("/bucket", recursive=True)


def test_shards_at_a_url_give_the_images_of_the_folder(shards, url, tmp_path):
    local = build_datasets(shards_config(shards), 0)
    for options in ({}, {"cache_dir": str(tmp_path / "cache")}):
        remote = build_datasets(shards_config(url, **options), 0)
        assert remote.fingerprint == local.fingerprint and remote.class_names == local.class_names
        for index in range(NUM_TRAIN):
            assert torch.equal(remote.train[1, index][0], local.train[1, index][0])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loading_processes_read_urls(shards, method):
    train = build_datasets(shards_config(f"file://{shards}"), 0).train
    loader: DataLoader[Any] = DataLoader(
        train, batch_size=2, sampler=[(0, i) for i in range(6)], num_workers=2, multiprocessing_context=method
    )
    images = torch.cat([images for images, _ in loader])
    assert torch.equal(images, torch.stack([train[0, index][0] for index in range(NUM_TRAIN)]))


def test_shards_shuffled_one_at_a_time_are_copied_one_at_a_time(shards, url, tmp_path):
    train = build_datasets(shards_config(url, cache_dir=str(tmp_path / "cache"), shuffle_shards=1), 0).train
    plan = BatchPlan(1, 1, 1, 1, 1, 1, 1)
    copies = []
    for (key,) in TrainingBatches(NUM_TRAIN, plan, 0, seed=0, epoch=0, parts=train.parts):
        assert train[key][0].shape == (3, 16, 16)
        copies.append(len(list((tmp_path / "cache").rglob("train*.tar"))))
    assert copies == [1, 1, 2, 2, 3, 3]  # two images each


def test_a_cached_shard_is_read_once_and_one_that_changed_is_read_again(shards, url, tmp_path):
    config = shards_config(url, cache_dir=str(tmp_path / "cache"))
    data_sets = build_datasets(config, 0)
    assert not list((tmp_path / "cache").rglob("*.tar"))  # nothing is copied before it is needed
    expected = [data_sets.train[0, index][0] for index in range(NUM_TRAIN)]
    copies = sorted((tmp_path / "cache").rglob("train*.tar"))
    assert [path.read_bytes() for path in copies] == [path.read_bytes() for path in sorted(shards.glob("train*.tar"))]
    memory = fsspec.filesystem("memory")
    ranges: List[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(memory), "cat_file", lambda *arguments, **options: ranges.append("read"))
        patch.setattr(type(memory), "get_file", lambda *arguments, **options: ranges.append("copied"))
        again = pickle.loads(pickle.dumps(data_sets))
        assert all(torch.equal(again.train[0, index][0], expected[index]) for index in range(NUM_TRAIN))
    assert ranges == []
    copies[0].write_bytes(b"left behind by an older version of the data")
    fresh = build_datasets(config, 0)
    assert all(torch.equal(fresh.train[0, index][0], expected[index]) for index in range(NUM_TRAIN))


def test_a_remote_index_that_had_to_be_built_is_kept_in_the_cache(tmp_path):
    memory = fsspec.filesystem("memory")
    folder = write_foreign(tmp_path / "foreign")
    for path in folder.glob("*.tar"):
        memory.pipe_file(f"/bucket/foreign/{path.name}", path.read_bytes())
    try:
        config = shards_config("memory://bucket/foreign", cache_dir=str(tmp_path / "cache"))
        assert len(build_datasets(config, 0).train) == 2
        assert len(list((tmp_path / "cache").rglob("*.index"))) == 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("datasets.shards.image_shards.scan_shard", None)
            assert len(build_datasets(config, 0).train) == 2
        assert len(build_datasets(shards_config("memory://bucket/foreign"), 0).train) == 2  # built each time
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_url_that_cannot_be_read_is_an_error_of_the_data():
    with pytest.raises(DataError, match="nosuchprotocol://x"):
        build_datasets(shards_config("nosuchprotocol://x"), 0)
    with pytest.raises(DataError, match="memory://nowhere"):
        build_datasets(shards_config("memory://nowhere"), 0)


def test_a_cache_for_a_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cache_dir .* has no effect"):
        build_datasets(shards_config(tmp_path, cache_dir="x"), 0)
    with pytest.raises(ConfigError, match=r"cache_dir 'x' has no effect with data\.name image_folder"):
        build_datasets(DataConfig(name="image_folder", cache_dir="x"), 0)


@pytest.mark.parametrize(
    "row", ["0\t-5\t0", "-1\t5\t0", f"{2**62}\t{2**62}\t0", f"{2**63}\t1\t0", "995\t6\t0", "0\t1\t-1", "0\t1\t1000000"]
)
def test_an_index_that_places_an_image_where_none_can_be_is_refused(row):
    with pytest.raises(DataError, match=r"is damaged or a different file .*; remove it to rebuild it"):
        parse_index("x.tar", f"{FORMAT}\t1000\t-\t1\tv\n{row}\ta.jpg\n".encode())
    assert parse_index("x.tar", f"{FORMAT}\t1000\t-\t1\tv\n995\t5\t0\ta.jpg\n".encode()).names == ("a.jpg",)
