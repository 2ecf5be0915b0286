"""Archives of torch.save and torch.export.save, looked at before torch reads them: nothing in them is run or unpacked.

torch stores: it never compresses. So the bytes of an archive's records are no more than those of the file, and a
small file cannot grow in memory.
"""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from typing import Any, Dict, Iterator, List, Tuple

import torch

# What a dictionary of tensors needs. torch.load(weights_only=True) has a list of its own; this one does not depend on
# the version of torch, and names what is refused.
_TENSOR_NAMES = re.compile(
    r"torch\.(?:[A-Z]\w*Storage|Size|Tensor|device|bool|bfloat16|(?:q?u?int|float|complex)\d\w*)"
    r"|torch\._utils\._rebuild_\w+|collections\.(?:OrderedDict|defaultdict|Counter)"
)


class RefusedError(ValueError):
    """An archive that asks for more than tensors; the message names what it asks for. Nothing of it was run."""


def load_tensors(data: bytes) -> Any:
    """What torch.save put into an archive, on the CPU: tensors and builtins. Nothing in it is run.

    Raises:
        RefusedError: it asks for code to be run.
        ValueError, zipfile.BadZipFile and others for bytes that are torn or no such archive.
    """
    # First: a bare pickle is refused for what it would import, and then for being one.
    refuse_globals(data)
    open_archive(data)
    return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def open_archive(data: bytes) -> zipfile.ZipFile:
    """The archive in `data`, whose records are as many bytes as they say, and together no more than `data`.

    Raises:
        ValueError: no archive of torch, or one with compressed, doubled or overlapping records.
    """
    # torch looks at the first bytes, Python at the last: a file of two kinds is read as one by both, or not at all.
    if not data.startswith(b"PK\3\4") or not zipfile.is_zipfile(io.BytesIO(data)):
        raise ValueError("it is not the zip archive that torch.save has written since torch 1.6")
    archive = zipfile.ZipFile(io.BytesIO(data))
    records = archive.infolist()
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise ValueError(
                f"record {record.filename!r} is compressed, {record.file_size:,} bytes in {record.compress_size:,}; "
                "torch compresses none: load it where you trust it, and save it again with torch.save"
            )
    total = sum(record.file_size for record in records)
    if total > len(data):
        raise ValueError(f"its records claim {total:,} bytes, and the file has {len(data):,}")
    if len({record.filename for record in records}) < len(records):
        raise ValueError("two of its records have the same name")
    return archive


def read_records(data: bytes) -> Dict[str, bytes]:
    """The records of an archive by name, without the folder that torch puts all of them in.

    Raises: as open_archive; ValueError and zipfile.BadZipFile for records that are damaged or in other folders.
    """
    archive = open_archive(data)
    root = archive.namelist()[0].partition("/")[0] + "/" if archive.namelist() else ""
    outside = [name for name in archive.namelist() if not name.startswith(root)]
    if outside:
        raise ValueError(f"its record {outside[0]!r} is outside of the folder {root!r} of the others")
    return {name[len(root) :]: archive.read(name) for name in archive.namelist()}


def refuse_globals(data: bytes) -> None:
    """Raises RefusedError for bytes that would import a name that is not part of a dictionary of tensors when they
    are unpickled: read from the instructions, without running any of them.

    Args:
        data: a file of torch.save (a zip archive with pickles in it), or a bare pickle.

    Raises: also what pickletools and zipfile raise for bytes that are torn or neither of these.
    """
    for name, is_certain in _imported_names(data):
        if not is_certain or not _TENSOR_NAMES.fullmatch(name):
            raise RefusedError(f"asks for the global {name}: refused, nothing was run. Do not trust this file")


def _imported_names(data: bytes) -> Iterator[Tuple[str, bool]]:
    """What is imported, as "module.name", and whether that is certain."""
    for pickled in _pickles(data):
        strings: List[str] = []
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", "."), True
            elif opcode.name == "STACK_GLOBAL":
                # What it imports is on the stack, which only running it tells for certain. Protocol 4 alone has it;
                # torch.save writes protocol 2.
                yield ".".join(strings[-2:]), False
            elif opcode.name.startswith("EXT"):
                yield f"copyreg extension {argument}", False
            elif isinstance(argument, str):
                strings.append(argument)


def _pickles(data: bytes) -> List[bytes]:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return [data]
    archive = open_archive(data)
    return [archive.read(name) for name in archive.namelist() if name.lower().endswith((".pkl", ".pickle"))]


def first_line(error: BaseException) -> str:
    """An error of unknown bytes, for people: its first line, or its kind where it has none."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
