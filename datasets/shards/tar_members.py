"""The members of an uncompressed tar file, with every byte of it accounted for.

Python's tarfile, like tar itself, takes the first thing that it does not understand for the end: behind a damaged
header, a hole of zeros or another archive that was joined on, members vanish without a word. Here each byte belongs to
a header, to content or to an end mark, and anything else is an error that says where.

    archive = (header, content filled up to 512 bytes)*  2 blocks of zeros  (zeros up to a multiple of 10,240 bytes)
    file    = archive+
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from dataclasses import dataclass
from typing import BinaryIO, Dict, Iterator

from datasets.errors import DataError

BLOCK = tarfile.BLOCKSIZE
ZEROS = bytes(BLOCK)
END_BLOCKS = 2
# What tar, Python and libarchive fill an archive up to; others write the end mark alone.
RECORD = tarfile.RECORDSIZE
MAX_END_BLOCKS = END_BLOCKS + RECORD // BLOCK - 1
# Of the long names and further fields in front of a member. Names are of a few thousand bytes at most.
MAX_FIELDS_BYTES = 1 << 20
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK": "zip"}
FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
OTHERS = (tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
VOLUME_LABEL = b"V"


@dataclass(frozen=True)
class TarMember:
    """One member.

    Attributes:
        name: with bytes that are not UTF-8 as os.fsdecode gives them.
        kind: one of tarfile's types.
        offset: of its content's first byte.
        size: of its content.
        target: the member that a link stands for, by name; "" for all others.
    """

    name: str
    kind: bytes
    offset: int
    size: int
    target: str = ""


def read_tar(path: str, file: BinaryIO) -> Iterator[TarMember]:
    """Give the members of a tar file, or of several joined end to end.

    Args:
        path: its name in messages.
        file: seekable; only headers and end marks are read.

    Raises:
        DataError: no uncompressed tar file, or one that is damaged, cut short, sparse or part of several volumes.
    """
    size = file.seek(0, os.SEEK_END)
    position = archive = 0
    is_ended = False
    all_members: Dict[str, str] = {}  # fields that hold for the rest of the archive, and for the next member alone
    next_member: Dict[str, str] = {}
    while position < size:
        block = read_at(file, position, BLOCK)
        if block == ZEROS and not next_member:
            position = _skip_end_mark(path, file, position, archive, size)
            archive, is_ended, all_members = position, True, {}
            continue
        header = _parse_header(path, block, position)
        is_ended = False
        content = position + BLOCK
        fields = {} if header.type in EXTENDED else {**all_members, **next_member}
        num_bytes = _size(path, header, fields, position)
        position = content + -(-num_bytes // BLOCK) * BLOCK
        if position > size:
            raise DataError(
                f"{path}: cut short: it has {size} bytes, and its member {header.name} ends at {position}; "
                "supply it again"
            )
        if header.type in EXTENDED + (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            if num_bytes > MAX_FIELDS_BYTES:
                raise _damaged(path, content, f"{num_bytes} bytes of names, over the limit of {MAX_FIELDS_BYTES}")
            found = _parse_fields(path, header.type, read_at(file, content, num_bytes), content)
            (all_members if header.type == tarfile.XGLTYPE else next_member).update(found)
            continue
        next_member = {}
        if header.type != VOLUME_LABEL:
            yield _member(path, header, fields, content, num_bytes)
    if next_member or not is_ended:
        raise DataError(
            f"{path}: cut short: it has {size} bytes without the {END_BLOCKS} blocks of zeros that end a tar file; "
            "supply it again"
        )


def read_at(file: BinaryIO, offset: int, num_bytes: int) -> bytes:
    file.seek(offset)
    return file.read(num_bytes)


def _skip_end_mark(path: str, file: BinaryIO, position: int, archive: int, size: int) -> int:
    """Return where the zeros at `position` end, unless they are not an end mark: a hole hides members."""
    end = position
    while end < size and end - position <= MAX_END_BLOCKS * BLOCK and read_at(file, end, BLOCK) == ZEROS:
        end += BLOCK
    blocks = (end - position) // BLOCK
    is_exact = blocks == END_BLOCKS or (end - archive) % RECORD == 0
    if not (END_BLOCKS <= blocks <= MAX_END_BLOCKS and is_exact):
        raise _damaged(
            path,
            position,
            f"{'more than ' if blocks > MAX_END_BLOCKS else ''}{min(blocks, MAX_END_BLOCKS) * BLOCK} bytes of zeros, "
            f"which neither end a tar file ({END_BLOCKS * BLOCK}, filled up to a multiple of {RECORD}) nor begin a "
            "member, as in a file that was not copied to its end",
        )
    return end


def _parse_header(path: str, block: bytes, position: int) -> tarfile.TarInfo:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        if position == 0:
            found = [name for start, name in COMPRESSIONS.items() if block.startswith(start)]
            reason = f"compressed with {found[0]}; decompress it" if found else f"it begins with {block[:8]!r}"
            raise DataError(f"{path}: not an uncompressed tar file: {reason}") from error
        raise _damaged(path, position, f"no header of a member ({error})") from error


def _size(path: str, header: tarfile.TarInfo, fields: Dict[str, str], position: int) -> int:
    """Return how many bytes of content follow a header."""
    if header.type in (tarfile.GNUTYPE_SPARSE, b"M") or any(name.startswith("GNU.sparse.") for name in fields):
        what = "part of a file of several volumes" if header.type == b"M" else "a sparse file, with holes left out"
        raise DataError(
            f"{path}: its member {fields.get('path', header.name)} is {what}, which is not read; write the tar file "
            "again without --sparse and --multi-volume"
        )
    if header.type in LINKS + OTHERS:
        return 0
    try:
        num_bytes = int(fields.get("size", header.size))
    except ValueError:
        num_bytes = -1
    if num_bytes < 0:
        raise _damaged(path, position, f"a member of the size {fields.get('size', header.size)}")
    return num_bytes


def _parse_fields(path: str, kind: bytes, content: bytes, position: int) -> Dict[str, str]:
    """Return what stands in front of a member because its header has no room for it."""
    if kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        text = os.fsdecode(content.split(b"\0", 1)[0])
        return {"path" if kind == tarfile.GNUTYPE_LONGNAME else "linkpath": text}
    fields = {}
    rest = content
    while rest.strip(b"\0"):
        # LENGTH KEY=VALUE\n, where LENGTH counts all of it
        digits, _, _ = rest.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        key, equals, value = rest[len(digits) + 1 : length - 1].partition(b"=")
        if not equals or rest[length - 1 : length] != b"\n":
            raise _damaged(path, position, "fields of a member in no known form")
        fields[os.fsdecode(key)] = os.fsdecode(value)
        rest = rest[length:]
    return fields


def _member(path: str, header: tarfile.TarInfo, fields: Dict[str, str], offset: int, size: int) -> TarMember:
    name = fields.get("path", header.name)
    if header.type not in FILES + LINKS + OTHERS:
        raise DataError(f"{path}: its member {name} is of the type {header.type!r}, which is not known; leave it out")
    target = fields.get("linkpath", header.linkname) if header.type in LINKS else ""
    if header.type == tarfile.SYMTYPE:  # relative to its own folder; hard links name a member
        target = posixpath.join(posixpath.dirname(name), target)
    kind = tarfile.REGTYPE if header.type in FILES else header.type
    return TarMember(name, kind, offset, size, posixpath.normpath(target) if target else "")


def _damaged(path: str, position: int, what: str) -> DataError:
    return DataError(f"{path}: damaged at byte {position}: {what}; supply it again")
