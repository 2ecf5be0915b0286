"""The index of a shard that came without one: which of its members are images, and where their labels are.

Members that look like a part of a sample and cannot be one are errors: an image without a label, a label without an
image, a key whose members are not neighbours, a link to something that is not there. What neither looks like an image
nor like a label is skipped, as are the files named ._NAME that macOS adds to hold attributes.
"""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
from collections import Counter
from dataclasses import replace
from typing import BinaryIO, Dict, List, Optional, Tuple

from configs.bounded_file import parse_json
from datasets.errors import DataError
from datasets.images.decode import EXTENSIONS
from datasets.shards.index import NOT_COMPUTED, ShardIndex, check_label, make_index
from datasets.shards.tar_members import LINKS, TarMember, read_at, read_tar

# members that carry a label, in order of preference; a .txt is often a caption, even where that is a number
LABEL_EXTENSIONS = (".cls", ".json", ".txt")
JSON_LABELS = ("label", "cls")
WHOLE_NUMBER = re.compile(rb"\s*\d+\s*")
MAX_LABEL_BYTES = 1 << 24  # a .json may hold much else
COMPANION, COMPANION_START = "._", b"\x00\x05\x16\x07"  # of AppleDouble files

Sample = Dict[str, TarMember]  # neighbouring members of one key, by extension


def scan_shard(path: str, file: BinaryIO) -> ShardIndex:
    """Return the index of a tar file that came without one, by reading its headers and labels.

    Args:
        path: its name in messages.
        file: the tar file.

    Raises:
        DataError: no uncompressed tar file, damaged or cut short, no image, or members that cannot be samples.
    """
    samples, companions = _samples(path, file)
    runs = Counter(key for key, _ in samples)
    rows: List[Tuple[int, int, int, str]] = []
    for key, sample in samples:
        row = _row(path, file, sample, is_scattered=runs[key] > 1)
        if row is not None:
            rows.append(row)
    if not rows:
        raise DataError(f"{path}: no image in it, by the names of its members; expected KEY.jpg and KEY.cls")
    size = file.seek(0, os.SEEK_END)
    return make_index(path, size, NOT_COMPUTED, rows, companions)


def _samples(path: str, file: BinaryIO) -> Tuple[List[Tuple[str, Sample]], int]:
    """Return (key, members) of each run of neighbours, and how many companions of macOS are skipped."""
    samples: List[Tuple[str, Sample]] = []
    contents: Dict[str, TarMember] = {}  # that a link may stand for
    companions = 0
    for member in read_tar(path, file):
        if member.kind == tarfile.DIRTYPE:
            continue
        if "\n" in member.name:
            raise DataError(f"{path}: {member.name!r} has a line break in its name; rename it")
        if posixpath.basename(member.name).startswith(COMPANION) and _is_companion(file, member):
            companions += 1
            continue
        key, extension = split_name(member.name)
        original = member if member.kind == tarfile.REGTYPE else contents.get(member.target)
        if original is None:
            if last_suffix(extension) in EXTENSIONS + LABEL_EXTENSIONS:
                raise DataError(_no_content(path, member))
            continue
        content = replace(original, name=member.name)
        contents[posixpath.normpath(member.name)] = content
        if not samples or samples[-1][0] != key:
            samples.append((key, {}))
        if extension in samples[-1][1]:
            raise DataError(f"{path}: {member.name} occurs twice; remove one")
        samples[-1][1][extension] = content
    return samples, companions


def _is_companion(file: BinaryIO, member: TarMember) -> bool:
    return member.size >= len(COMPANION_START) and read_at(file, member.offset, 4) == COMPANION_START


def _no_content(path: str, member: TarMember) -> str:
    if member.kind not in LINKS:
        return f"{path}: {member.name} is a device or pipe, not a file; remove it"
    return (
        f"{path}: {member.name} is a link to {member.target}, which is not an earlier member; write the tar file again "
        "with `tar --dereference --hard-dereference`, which stores files in place of links"
    )


def split_name(name: str) -> Tuple[str, str]:
    """Return key and extension of a member: "a.b/c.seg.png" gives "a.b/c" and ".seg.png"."""
    folder, _, file_name = name.rpartition("/")
    stem, dot, rest = file_name.partition(".")
    return f"{folder}/{stem}" if folder else stem, (dot + rest).lower()


def last_suffix(extension: str) -> str:
    return "." + extension.rpartition(".")[2]


def _row(path: str, file: BinaryIO, sample: Sample, is_scattered: bool) -> Optional[Tuple[int, int, int, str]]:
    """Return (offset, length, label, name) of a sample's image, None for members that are not part of a sample.

    Args:
        path: the file's name in messages.
        file: the tar file.
        sample: its members by extension.
        is_scattered: there are other members of the same key elsewhere.
    """
    images = [sample[extension] for extension in sample if extension in EXTENSIONS]
    if len(images) > 1:
        names = " ".join(extension for extension in sample if extension in EXTENSIONS)
        raise DataError(f"{path}: {images[0].name} has the images {names}; expected one for each key")
    labelled = _labelled(path, file, sample)
    if images and labelled is not None:
        return images[0].offset, images[0].size, labelled[1], images[0].name
    half = images[0] if images else labelled[0] if labelled is not None else None
    if half is not None and is_scattered:
        raise DataError(
            f"{path}: {half.name} has its {'label' if images else 'image'} elsewhere: members of one key must be "
            "neighbours; write the tar file again with `tar --sort=name`"
        )
    if images:
        raise DataError(
            f"{path}: {images[0].name} has no label; expected a whole number in the member of the same key that ends "
            f'in {LABEL_EXTENSIONS[0]} or {LABEL_EXTENSIONS[2]}, or as "label" or "cls" in the one that ends in '
            f"{LABEL_EXTENSIONS[1]}"
        )
    if half is not None:
        others = " ".join(member.name for member in sample.values() if member is not half) or "nothing else"
        raise DataError(
            f"{path}: {half.name} is a label without an image; its key also has {others}; expected one image "
            f"({' '.join(EXTENSIONS)}) for each label"
        )
    for extension, member in sample.items():
        if last_suffix(extension) in EXTENSIONS:
            raise DataError(
                f"{path}: {member.name} is not taken for an image: its key ends at the first dot of the name; keep "
                "that dot for the extension alone"
            )
    return None


def _labelled(path: str, file: BinaryIO, sample: Sample) -> Optional[Tuple[TarMember, int]]:
    """Return the member that holds a sample's label, and the label; None where there is none."""
    for extension in LABEL_EXTENSIONS:
        if extension in sample:
            label = _label(path, file, sample[extension], extension)
            if label is not None:
                return sample[extension], label
    return None


def _label(path: str, file: BinaryIO, member: TarMember, extension: str) -> Optional[int]:
    if member.size > MAX_LABEL_BYTES:
        raise DataError(
            f"{path}: {member.name} has {member.size} bytes, over the limit of {MAX_LABEL_BYTES} for a label"
        )
    try:
        return parse_label(read_at(file, member.offset, member.size), extension)
    except ValueError as error:
        raise DataError(f"{path}: {member.name}: {error}; correct it") from error


def parse_label(content: bytes, extension: str) -> Optional[int]:
    """Return the label that a member holds, None if it holds something else (a caption).

    Raises:
        ValueError: a whole number that is not a label.
    """
    if extension != ".json":
        return check_label(int(content)) if WHOLE_NUMBER.fullmatch(content) else None
    try:
        values = parse_json(content)
    except ValueError:  # numbers of thousands of digits, or lists in lists in lists
        return None
    if not isinstance(values, dict):
        return None
    labels = [values[name] for name in JSON_LABELS if type(values.get(name)) is int and values[name] >= 0]
    return check_label(labels[0]) if labels else None
