"""Which names a pickled file would import: read from its instructions, without running any of them."""

from __future__ import annotations

import io
import pickletools
import zipfile
from typing import Iterator, List, Optional

# What a dictionary of tensors needs. torch.load(weights_only=True) has a list of its own; this one does not depend on
# the version of torch, and names what is refused.
_TENSOR_MODULES = ("torch", "torch._utils", "collections")


def forbidden_global(data: bytes) -> Optional[str]:
    """The first name that is not part of a dictionary of tensors, as "module.name"; None if there is none.

    Args:
        data: a file of torch.save (a zip archive with pickles in it), or a bare pickle.

    Raises: ValueError, zipfile.BadZipFile and others for bytes that are torn or neither of these.
    """
    for name in _imported_names(data):
        if name.rpartition(".")[0] not in _TENSOR_MODULES:
            return name
    return None


def _imported_names(data: bytes) -> Iterator[str]:
    for pickled in _pickles(data):
        strings: List[str] = []
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                yield ".".join(strings[-2:])  # module and name are the last two strings pushed
            elif isinstance(argument, str):
                strings.append(argument)


def _pickles(data: bytes) -> List[bytes]:
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return [data]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
