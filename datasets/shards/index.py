"""What is where in a tar file of images: one line per image, so that any image is read by one access.

A shard is an uncompressed tar file in WebDataset's layout: neighbouring members with the same key make a sample, where
the key is the path up to the first dot of the file name. One member is the image (.jpg, .png, ...); the label is the
whole number in KEY.cls, else in KEY.txt, else the value "label" or "cls" of KEY.json.

The index SHARD.tar.index is text, tab-separated: first the size of the shard, its SHA-256 sum and the number of images,
then for each image its offset, length, label and name. Where the shard came without an index, the sum is "-", and the
shard's version at that time follows the number of images (StoredFile.version of datasets/shards/store.py): a shard of
another version is scanned again. Behind it stands how the images were changed when they were packed, if they were.
Names are the bytes that the shard holds, in whatever encoding.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import List, Tuple

import numpy as np

from datasets.errors import DataError

SUFFIX = ".index"
FORMAT = "proxynorm-shard-index-2"
# Of the same form, but scanned by rules that lost members of damaged or joined files.
FORMER_FORMAT = "proxynorm-shard-index-1"
NOT_COMPUTED = "-"
LABEL_LIMIT = 1_000_000  # a network has an output for each label: a number beyond is not a label but some identifier


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
        names: of the members, N of them, with bytes that are not UTF-8 as os.fsdecode gives them.
        version: of the shard that was scanned for this index; "" for an index that came with its shard.
        companions: files of macOS that the scan skipped; not saved.
        is_former: scanned by rules that lost images.
        changed: how the images were changed when they were packed; "" for images as they came.
    """

    shard: str
    num_bytes: int
    sha256: str
    offsets: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    names: Tuple[str, ...]
    version: str = ""
    companions: int = 0
    is_former: bool = False
    changed: str = ""

    def content(self) -> bytes:
        """Return the content of the index file."""
        rows = zip(self.offsets.tolist(), self.lengths.tolist(), self.labels.tolist(), self.names)
        header = [FORMAT, str(self.num_bytes), self.sha256, str(len(self.names)), self.version, self.changed]
        lines = ["\t".join(header).rstrip("\t")]  # what is empty at its end is left out
        lines += [f"{offset}\t{length}\t{label}\t{name}" for offset, length, label, name in rows]
        return os.fsencode("\n".join(lines) + "\n")


def make_index(
    shard: str, size: int, sha256: str, rows: List[Tuple[int, int, int, str]], companions: int = 0
) -> ShardIndex:
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
        companions=companions,
    )


def parse_index(shard: str, content: bytes) -> ShardIndex:
    """Return the index that the file's content holds.

    Raises:
        DataError: another format, a line of another form, or images outside of the shard.
    """
    lines = os.fsdecode(content).split("\n")[:-1]  # each line ends with one; without it, it is cut short
    try:
        form, size, sha256, count, *rest = lines[0].split("\t")
        version, changed = (*rest, "", "")[: max(2, len(rest))]
        if form not in (FORMAT, FORMER_FORMAT):
            raise ValueError(f"it starts with {form!r}, expected {FORMAT!r}")
        if len(lines) - 1 != int(count):
            raise ValueError(f"it is cut short: it has {len(lines) - 1} whole lines, expected {count}")
        rows = [line.split("\t", 3) for line in lines[1:]]
        numbers = [(int(a), int(b), int(c), name) for a, b, c, name in rows]
        for _, _, label, _ in numbers:
            check_label(label)
        is_former = form == FORMER_FORMAT and sha256 == NOT_COMPUTED
        index = make_index(shard, int(size), sha256, numbers)
        index = replace(index, version=version, is_former=is_former, changed=changed)
        if any(min(offset, length) < 0 or offset + length > index.num_bytes for offset, length, _, _ in numbers):
            raise ValueError(f"an image lies outside of the shard's {size} bytes")
    except (ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{shard}{SUFFIX} is damaged or a different file ({error}); remove it to rebuild it") from error
    return index


def check_label(label: int) -> int:
    """Return `label`, or raise ValueError."""
    if not 0 <= label < LABEL_LIMIT:
        raise ValueError(f"the label is {label}; expected 0 or more and less than {LABEL_LIMIT}")
    return label
