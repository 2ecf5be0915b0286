"""Which names a pickled file would import: read from its instructions, without running any of them."""

from __future__ import annotations

import io
import pickletools
import zipfile
from typing import Iterator, List, Optional

# What a dictionary of tensors needs. torch.load(weights_only=True) has its own list and is the actual guard; this one
# gives the refusal a readable name on every torch version.
_TENSOR_MODULES = ("torch", "torch._utils", "collections")


def forbidden_global(data: bytes) -> Optional[str]:
    """The first name that is not part of a dictionary of tensors, as "module.name"; None if there is none.

    Bytes that are no pickle have no names: None.
    """
    for name in _imported_names(data):
        module = name.rpartition(".")[0]
        if module not in _TENSOR_MODULES:
            return name
    return None


def _imported_names(data: bytes) -> Iterator[str]:
    for pickled in _pickles(data):
        strings: List[str] = []
        try:
            for opcode, argument, _ in pickletools.genops(pickled):
                if opcode.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    yield ".".join(strings[-2:])
                elif isinstance(argument, str):
                    strings.append(argument)
        except ValueError:
            return  # torn or no pickle: torch.load says so


def _pickles(data: bytes) -> List[bytes]:
    """The pickles of a file written by torch.save: inside a zip archive, or, in the older form, the file itself."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return [data]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
    except zipfile.BadZipFile:
        return []
