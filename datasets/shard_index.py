"""What is where in a tar file of images: one line per image, so that any image is read by one access.

A shard is an uncompressed tar file in WebDataset's layout: neighbouring members with the same key make a sample, where
the key is the path up to the first dot of the file name. One member is the image (.jpg, .png, ...); the label is the
whole number in KEY.cls, else in KEY.txt, else the value "label" or "cls" of KEY.json.

The index SHARD.tar.index is text, tab-separated: first the size of the shard, its SHA-256 sum ("-" where it was not
computed) and the number of images, then for each image its offset, length, label and name.
"""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import dataclass
from typing import BinaryIO, Dict, List, Optional, Tuple

import numpy as np

from datasets.decode import EXTENSIONS
from datasets.errors import DataError

SUFFIX = ".index"
FORMAT = "proxynorm-shard-index-1"
NOT_COMPUTED = "-"
# members that carry a label, in order of preference
LABEL_EXTENSIONS = (".cls", ".txt", ".json")
JSON_LABELS = ("label", "cls")
WHOLE_NUMBER = re.compile(rb"\s*\d+\s*")


@dataclass(frozen=True)
class ShardIndex:
    """The images of one shard.

    Attributes:
        shard: its name, below the folder of the data.
        bytes: its size.
        sha256: its sum, or "-".
        offsets: of each image's first byte, (N,) int64.
        lengths: of each image in bytes, (N,) int64.
        labels: (N,) int32.
        names: of the members, N of them.
    """

    shard: str
    bytes: int
    sha256: str
    offsets: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    names: Tuple[str, ...]

    def text(self) -> str:
        """The content of the index file."""
        rows = zip(self.offsets.tolist(), self.lengths.tolist(), self.labels.tolist(), self.names)
        lines = [f"{FORMAT}\t{self.bytes}\t{self.sha256}\t{len(self.names)}"]
        lines += [f"{offset}\t{length}\t{label}\t{name}" for offset, length, label, name in rows]
        return "\n".join(lines) + "\n"


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


def parse_index(shard: str, text: str) -> ShardIndex:
    """Return the index that `text` holds.

    Raises:
        DataError: another format, a line of another form, or images outside of the shard.
    """
    lines = text.split("\n")[:-1]  # each line ends with one; without it, it is cut short
    try:
        form, size, sha256, count = lines[0].split("\t")
        if form != FORMAT:
            raise ValueError(f"it starts with {form!r}, expected {FORMAT!r}")
        if len(lines) - 1 != int(count):
            raise ValueError(f"it is cut short: it has {len(lines) - 1} whole lines, expected {count}")
        rows = [line.split("\t", 3) for line in lines[1:]]
        index = make_index(shard, int(size), sha256, [(int(a), int(b), int(c), name) for a, b, c, name in rows])
        if len(rows) and (index.offsets.min() < 0 or (index.offsets + index.lengths).max() > index.bytes):
            raise ValueError(f"an image lies outside of the shard's {size} bytes")
        if len(rows) and index.labels.min() < 0:
            raise ValueError(f"a label is {index.labels.min()}; the first is 0")
    except (ValueError, IndexError) as error:
        raise DataError(
            f"{shard}{SUFFIX} is damaged or another file ({error}); remove it to have it built anew"
        ) from error
    return index


def scan_shard(shard: str, file: BinaryIO, size: int) -> ShardIndex:
    """Return the index of a tar file that came without one, by reading its headers and labels.

    Args:
        shard: its name.
        file: the tar file, from its beginning.
        size: of the file in bytes.

    Raises:
        DataError: no uncompressed tar file, cut short, no image, an image without label, or two images of one key.
    """
    rows: List[Tuple[int, int, int, str]] = []
    key: Optional[str] = None
    sample: Dict[str, tarfile.TarInfo] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
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
            label = parse_label(file.read(), extension)
            if label is not None:
                rows.append((member.offset_data, member.size, label, member.name))
                return
    raise DataError(
        f"{shard}: {member.name} has no label; expected a whole number in the member of the same key that ends in "
        f'{" or ".join(LABEL_EXTENSIONS[:2])}, or as "label" or "cls" in the one that ends in {LABEL_EXTENSIONS[2]}'
    )


def parse_label(content: bytes, extension: str) -> Optional[int]:
    """Return the label that a member holds, None if it holds something else (a caption)."""
    if extension != ".json":
        return int(content) if WHOLE_NUMBER.fullmatch(content) else None
    try:
        values = json.loads(content)
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    labels = [values[name] for name in JSON_LABELS if type(values.get(name)) is int and values[name] >= 0]
    return labels[0] if labels else None
