"""Shards and folders whose names are not UTF-8, and members that hold what is not a label."""

import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from made_images import save_noise
from test_datasets_shards import add, contents, jpeg, shards_config, write_foreign, write_tar

from configs.errors import ConfigError
from configs.schema import DataConfig
from datasets import DataError, build_datasets, check, pack
from datasets.class_names import parse_class_names
from datasets.shards.index import FORMAT
from datasets.shards.scan import parse_label

LATIN = os.fsdecode(b"caf\xe9")


def write_latin(path: Path, *names: str) -> None:
    """Write images whose names are encoded in Latin-1, each with its place as label; the last is not an image."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        for label, name in enumerate(names):
            add(tar, f"{name}.jpg", jpeg(label) if label < len(names) - 1 else b"<html>")
            add(tar, f"{name}.cls", str(label).encode())


def test_members_whose_names_are_no_utf_8_are_read_and_named(tmp_path, capsys):
    folder = write_foreign(tmp_path)
    write_latin(folder / "set-train-0.tar", "café/0", "café/1", "ü")
    for _ in range(2):  # the index is built, then read
        images: Any = build_datasets(shards_config(folder), 0).train
        assert images.source.names.tolist() == [b"caf\xe9/0.jpg", b"caf\xe9/1.jpg", b"\xfc.jpg"]
        assert images.source.load(1)[0].content == jpeg(1)
        with pytest.raises(DataError, match=r"set-train-0\.tar, \udcfc\.jpg \(class 2\): cannot be used"):
            _ = images[0, 2]
    settings = ["--set", "data.name=image_shards", "--set", f"data.dir={folder}", "--workers", "0"]
    assert check.main(["--config", "rn50_gn8pn", *settings]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(rf"  {folder}/set-train-0.tar, \udcfc.jpg (class 2): cannot be used") for line in lines)


def test_a_class_whose_name_is_no_utf_8_is_packed_and_read(tmp_path, capsys):
    for half in ("train", "val"):
        for class_name in (LATIN, "a\x85b", "bee"):
            save_noise(tmp_path / "folder" / half / class_name / "0.jpg")
    pack.pack(tmp_path / "folder", tmp_path / "shards", 1 << 20, 0)
    packed = build_datasets(shards_config(tmp_path / "shards"), 0)
    assert sorted(packed.class_names) == sorted((LATIN, "a\x85b", "bee")) and len(contents(packed.train)) == 3
    settings = ["--set", "data.name=image_shards", "--set", f"data.dir={tmp_path / 'shards'}", "--workers", "0"]
    assert check.main(["--config", "rn50_gn8pn", *settings]) == 0
    assert r"  caf\udce9: 1" in capsys.readouterr().out.splitlines()


def test_a_name_with_a_line_break_is_refused_and_one_with_a_tab_is_read(tmp_path):
    folder = write_foreign(tmp_path)
    write_tar(folder / "set-train-0.tar", {"a\tb.jpg": jpeg(), "a\tb.cls": b"0"})
    for _ in range(2):
        source: Any = build_datasets(shards_config(folder), 0).train.source
        assert source.names.tolist() == [b"a\tb.jpg"]
    write_tar(folder / "set-train-0.tar", {"a\nb.jpg": jpeg(), "a\nb.cls": b"0"})
    with pytest.raises(DataError, match=r"'a\\nb\.jpg' has a line break in its name"):
        build_datasets(shards_config(folder), 0)


@pytest.mark.parametrize("digits", ["1000000", "2147483648", "18446744073709551616", "9" * 5000])
def test_a_number_beyond_all_labels_is_refused_in_words(tmp_path, capsys, digits):
    folder = write_foreign(tmp_path)
    write_tar(folder / "set-train-0.tar", {"a.jpg": jpeg(), "a.cls": digits.encode()})
    with pytest.raises(DataError, match=r"set-train-0\.tar: a\.cls: .*; correct it"):
        build_datasets(shards_config(folder), 0)
    settings = ["--set", "data.name=image_shards", "--set", f"data.dir={folder}", "--workers", "0"]
    assert check.main(["--config", "rn50_gn8pn", *settings]) == 3
    assert "set-train-0.tar: a.cls: " in capsys.readouterr().out


def test_labels_of_json_members_have_the_same_limit():
    assert parse_label(b'{"label": 999999}', ".json") == 999999
    with pytest.raises(ValueError, match="the label is 1000000; expected 0 or more and less than 1000000"):
        parse_label(b'{"label": 1000000}', ".json")
    assert parse_label(b"[" * 100_000, ".json") is None and parse_label(b"9" * 5000, ".json") is None


@pytest.mark.parametrize("row", ["0\t10\t2147483648\ta.jpg", "9223372036854775808\t1\t0\ta.jpg"])
def test_numbers_that_do_not_fit_make_an_index_damaged(tmp_path, row):
    folder = write_foreign(tmp_path)
    build_datasets(shards_config(folder), 0)
    (folder / "set-train-0.tar.index").write_text(f"{FORMAT}\t99\t-\t1\n{row}\n")
    with pytest.raises(DataError, match="is damaged or a different file"):
        build_datasets(shards_config(folder), 0)


@pytest.mark.parametrize("tail", [b"", b"\n", b"\r\n\r\n", b"\n\n\n"])
def test_lines_of_classes_may_end_as_any_system_writes_them(tail):
    expected = ("cat", " dog", "bee")
    assert parse_class_names("classes.txt", b"cat\n dog\nbee" + tail) == expected
    assert parse_class_names("classes.txt", b"\xef\xbb\xbfcat\r\n dog\r\nbee" + tail) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cat\n\ndog\n", "line 2 is empty, and would be the class of label 1"),
        (b"\ncat\ndog\n", "line 1 is empty"),
        (b"cat\n \ndog\n", "line 2 is empty"),
        (b"cat\ndog\ncat\n", "two classes look the same: cat"),
        ("caf\u00e9\ncafe\u0301\n".encode(), r"two classes look the same: .*'caf\\xe9' and 'cafe\\u0301'"),
        (b"cat\rdog\rbee\n", "has a line break in its name"),
        ("cat\ndog\n".encode("utf-16"), "not UTF-8 text with one class name per line"),
    ],
)
def test_class_names_that_would_shift_labels_or_look_the_same_are_refused(tmp_path, content, message):
    folder = write_foreign(tmp_path)
    (folder / "classes.txt").write_bytes(content)
    with pytest.raises(DataError, match=f"classes.txt: .*{message}"):
        build_datasets(shards_config(folder), 0)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("ant", "bee\nwasp"), r"the class 'bee\\nwasp' has a line break in its name; rename it"),
        (("ant\r", "bee"), r"the class 'ant\\r' has a line break"),
        (("caf\u00e9", "cafe\u0301"), r"two classes look the same: .*, written 'cafe\\u0301' and 'caf\\xe9'"),
    ],
)
def test_class_folders_with_such_names_are_refused_read_and_packed(tmp_path, names, message):
    for half in ("train", "val"):
        for name in names:
            save_noise(tmp_path / "folder" / half / name / "0.jpg")
    with pytest.raises(DataError, match=message):
        build_datasets(DataConfig(name="image_folder", dir=str(tmp_path / "folder")), 0)
    with pytest.raises(DataError, match=message):
        pack.pack(tmp_path / "folder", tmp_path / "shards", 1 << 20, 0)


def test_a_class_that_both_halves_spell_differently_is_told_as_such(tmp_path):
    for half, name in (("train", "caf\u00e9"), ("val", "cafe\u0301")):
        for each in ("ant", name):
            save_noise(tmp_path / half / each / "0.jpg")
    with pytest.raises(DataError, match=r"two classes look the same: .*'cafe\\u0301' and 'caf\\xe9'"):
        build_datasets(DataConfig(name="image_folder", dir=str(tmp_path)), 0)


@pytest.mark.parametrize("extension", ["jfif", "JPE", "avif"])
def test_other_extensions_of_photographs_are_images(tmp_path, extension):
    for half in ("train", "val"):
        for name in ("ant", "bee"):
            save_noise(tmp_path / half / name / "0.jpg")
            (tmp_path / half / name / "0.jpg").rename(tmp_path / half / name / f"0.{extension}")
    assert len(build_datasets(DataConfig(name="image_folder", dir=str(tmp_path)), 0).train) == 2


def test_a_fingerprint_over_contents_sees_what_names_and_sizes_do_not(tmp_path):
    for half in ("train", "val"):
        for name in ("ant", "bee"):
            save_noise(tmp_path / "folder" / half / name / "0.png", seed=len(half + name))
    pack.pack(tmp_path / "folder", tmp_path / "shards", 1 << 20, 0)
    configs = {"image_folder": "folder", "image_shards": "shards"}

    def fingerprints(kind: "str | None") -> "list[str]":
        return [
            build_datasets(DataConfig(name=name, dir=str(tmp_path / place), fingerprint=kind), 0).fingerprint
            for name, place in configs.items()
        ]

    before, contents_before = fingerprints(None), fingerprints("contents")
    assert fingerprints("contents") == contents_before
    for path in (tmp_path / "folder" / "val" / "bee" / "0.png", *(tmp_path / "shards").glob("val*.tar")):
        content = bytearray(path.read_bytes())
        content[content.index(b"IDAT") + 40] ^= 1
        path.write_bytes(content)
    assert fingerprints(None) == before
    assert all(old != new for old, new in zip(contents_before, fingerprints("contents")))
    (tmp_path / "folder" / "train" / "ant" / "0.png").unlink()
    (tmp_path / "folder" / "train" / "ant" / "0.png").mkdir()
    with pytest.raises(DataError, match="not an image file"):
        fingerprints("contents")


def test_a_fingerprint_over_contents_has_no_meaning_for_images_in_memory():
    with pytest.raises(ConfigError, match=r"data\.fingerprint 'contents' has no effect with data\.name generated"):
        build_datasets(DataConfig(name="generated", fingerprint="contents"), 0)
