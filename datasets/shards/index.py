"""What is where in a tar file of images: one line per image, so that any image is read by one access.

A shard is an uncompressed tar file in WebDataset's layout: neighbouring members with the same key make a sample, where
the key is the path up to the first dot of the file name. One member is the image (.jpg, .png, ...); the label is the
whole number in KEY.cls, else in KEY.txt, else the value "label" or "cls" of KEY.json.

The index SHARD.tar.index is text, tab-separated: first the size of the shard, its SHA-256 sum and the number of images,
then for each image its offset, length, label and name. Where the shard came without an index, the sum is "-", and the
shard's version at that time follows the number of images (StoredFile.version of datasets/shards/store.py): a shard of
another version is scanned again. Names are the bytes that the shard holds, in whatever encoding.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from dataclasses import dataclass, replace
from typing import BinaryIO, Dict, List, Optional, Tuple

import numpy as np

from datasets.errors import DataError
from datasets.images.decode import EXTENSIONS

SUFFIX = ".index"
FORMAT = "proxynorm-shard-index-1"
NOT_COMPUTED = "-"
# members that carry a label, in order of preference
LABEL_EXTENSIONS = (".cls", ".txt", ".json")
JSON_LABELS = ("label", "cls")
WHOLE_NUMBER = re.compile(rb"\s*\d+\s*")
LABEL_LIMIT = 1_000_000  # a network has an output for each label: a number beyond is no label but some identifier


@dataclass(frozen=True)
class ShardIndex:
    """The images of one shard.

    Attributes:
        shard: its name, below the folder of the data.
        num_bytes: its size.
        sha256: its sum, or "-".
        offsets: of each image's first byte, (N,) int64.
        lengths: of each image in bytes, (N,) int64.
        labels: (N,) int32.
        names: of the members, N of them, with bytes that are no UTF-8 as os.fsdecode gives them.
        version: of the shard that was scanned for this index; "" for an index that came with its shard.
    """

    shard: str
    num_bytes: int
    sha256: str
    offsets: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    names: Tuple[str, ...]
    version: str = ""

    def content(self) -> bytes:
        """The content of the index file."""
        rows = zip(self.offsets.tolist(), self.lengths.tolist(), self.labels.tolist(), self.names)
        header = [FORMAT, self.num_bytes, self.sha256, len(self.names)] + ([self.version] if self.version else [])
        lines = ["\t".join(str(value) for value in header)]
        lines += [f"{offset}\t{length}\t{label}\t{name}" for offset, length, label, name in rows]
        return os.fsencode("\n".join(lines) + "\n")


def make_index(shard: str, size: int, sha256: str, rows: List[Tuple[int, int, int, str]]) -> ShardIndex:
    """Return the index of these (offset, length, label, name) rows."""
    offsets, lengths, labels, names = zip(*rows) if rows else ((), (), (), ())
    return ShardIndex(
        shard,
        size,
        sha256,
        np.array(offsets, dtype=np.int64),
        np.array(lengths, dtype=np.int64),
        np.array(labels, dtype=np.int32),
        tuple(names),
    )


def parse_index(shard: str, content: bytes) -> ShardIndex:
    """Return the index that the file's content holds.

    Raises:
        DataError: another format, a line of another form, or images outside of the shard.
    """
    lines = os.fsdecode(content).split("\n")[:-1]  # each line ends with one; without it, it is cut short
    try:
        form, size, sha256, count, *version = lines[0].split("\t")
        if form != FORMAT:
            raise ValueError(f"it starts with {form!r}, expected {FORMAT!r}")
        if len(lines) - 1 != int(count):
            raise ValueError(f"it is cut short: it has {len(lines) - 1} whole lines, expected {count}")
        rows = [line.split("\t", 3) for line in lines[1:]]
        numbers = [(int(a), int(b), int(c), name) for a, b, c, name in rows]
        for _, _, label, _ in numbers:
            check_label(label)
        index = replace(make_index(shard, int(size), sha256, numbers), version="".join(version))
        if len(rows) and (index.offsets.min() < 0 or (index.offsets + index.lengths).max() > index.num_bytes):
            raise ValueError(f"an image lies outside of the shard's {size} bytes")
    except (ValueError, IndexError, OverflowError) as error:
        raise DataError(
            f"{shard}{SUFFIX} is damaged or another file ({error}); remove it to have it built anew"
        ) from error
    return index


def scan_shard(shard: str, file: BinaryIO) -> ShardIndex:
    """Return the index of a tar file that came without one, by reading its headers and labels.

    Args:
        shard: its name.
        file: the tar file.

    Raises:
        DataError: no uncompressed tar file, cut short, no image, an image without label, or two images of one key.
    """
    rows: List[Tuple[int, int, int, str]] = []
    key: Optional[str] = None
    sample: Dict[str, tarfile.TarInfo] = {}
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                if "\n" in member.name:
                    raise DataError(f"{shard}: {member.name!r} has a line break in its name; rename it")
                member_key, extension = split_name(member.name)
                if member_key != key:
                    add_sample(shard, tar, sample, rows)
                    key, sample = member_key, {}
                if extension in sample:
                    raise DataError(f"{shard}: {member.name} is there twice; remove one")
                sample[extension] = member
            add_sample(shard, tar, sample, rows)
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{shard}: not an uncompressed tar file, or damaged: {error}; supply it again") from error
    if not rows:
        raise DataError(f"{shard}: no image in it, by the names of its members; expected KEY.jpg and KEY.cls")
    last = max(offset + length for offset, length, _, _ in rows)
    if last > size:
        raise DataError(f"{shard}: cut short: it has {size} bytes, its last image ends at {last}; supply it again")
    return make_index(shard, size, NOT_COMPUTED, rows)


def split_name(name: str) -> Tuple[str, str]:
    """Return key and extension of a member: "a.b/c.seg.png" gives "a.b/c" and ".seg.png"."""
    folder, _, file_name = name.rpartition("/")
    stem, dot, rest = file_name.partition(".")
    return f"{folder}/{stem}" if folder else stem, (dot + rest).lower()


def add_sample(
    shard: str, tar: tarfile.TarFile, sample: Dict[str, tarfile.TarInfo], rows: List[Tuple[int, int, int, str]]
) -> None:
    """Append the row of the image among the members of one key, if one is an image."""
    images = [extension for extension in sample if extension in EXTENSIONS]
    if not images:
        return
    member = sample[images[0]]
    if len(images) > 1:
        raise DataError(f"{shard}: {member.name} has the images {' '.join(images)}; expected one for each key")
    for extension in LABEL_EXTENSIONS:
        if extension in sample:
            file = tar.extractfile(sample[extension])
            assert file is not None  # only regular members are collected
            try:
                label = parse_label(file.read(), extension)
            except ValueError as error:
                raise DataError(f"{shard}: {sample[extension].name}: {error}; correct it") from error
            if label is not None:
                rows.append((member.offset_data, member.size, label, member.name))
                return
    raise DataError(
        f"{shard}: {member.name} has no label; expected a whole number in the member of the same key that ends in "
        f'{" or ".join(LABEL_EXTENSIONS[:2])}, or as "label" or "cls" in the one that ends in {LABEL_EXTENSIONS[2]}'
    )


def parse_label(content: bytes, extension: str) -> Optional[int]:
    """Return the label that a member holds, None if it holds something else (a caption).

    Raises:
        ValueError: a whole number that is no label.
    """
    if extension != ".json":
        return check_label(int(content)) if WHOLE_NUMBER.fullmatch(content) else None
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):  # numbers of thousands of digits, or lists in lists in lists
        return None
    if not isinstance(values, dict):
        return None
    labels = [values[name] for name in JSON_LABELS if type(values.get(name)) is int and values[name] >= 0]
    return check_label(labels[0]) if labels else None


def check_label(label: int) -> int:
    """Return `label`, or raise ValueError."""
    if not 0 <= label < LABEL_LIMIT:
        raise ValueError(f"the label is {label}; expected 0 or more and less than {LABEL_LIMIT}")
    return label
