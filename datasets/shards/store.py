"""Where shards are: in a folder, or at a URL (datasets/shards/remote_store.py)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Dict, Sequence

from typing_extensions import Protocol

from configs.atomic_file import replace_file
from configs.bounded_file import MIB, open_regular, read_bounded

SUBFOLDERS = ("train", "val")
BLOCK_BYTES = 1 << 22
NOT_TOLD = "-"
# Files that are read whole: an index takes about 50 bytes an image.
MAX_INDEX_BYTES = 256 * MIB


@dataclass(frozen=True)
class StoredFile:
    """What a place tells about a file that is not opened.

    Attributes:
        num_bytes: its size.
        version: another text when the content may have changed; NOT_TOLD where the place tells the size alone.
    """

    num_bytes: int
    version: str


class ShardStore(Protocol):
    """Files of one place, by name; a name may begin with one of SUBFOLDERS."""

    def files(self) -> Dict[str, StoredFile]:
        """Return what is known about each file, by name."""

    def path(self, name: str) -> str:
        """Return the file's name in messages."""

    def read(self, name: str) -> bytes: ...

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on, fewer where the file ends earlier."""

    def open(self, name: str) -> BinaryIO: ...

    def must_copy(self, names: Sequence[str]) -> bool:
        """Return whether any of these files is copied here before it is read, and is not here yet."""

    def write_index(self, name: str, content: bytes) -> None:
        """Keep a file that a later `read` finds.

        Raises:
            OSError: it cannot be written.
        """


class FolderStore:
    """A folder of this machine.

    Files are opened for each access: that takes microseconds where decoding takes a thousand, and neither limits on
    open files nor processes that share them matter.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> Dict[str, StoredFile]:
        found: Dict[str, StoredFile] = {}
        for place in ("",) + SUBFOLDERS:
            if (self.folder / place).is_dir():
                with os.scandir(self.folder / place) as entries:
                    for entry in entries:
                        if entry.is_file():
                            status = entry.stat()
                            name = f"{place}/{entry.name}".lstrip("/")
                            found[name] = StoredFile(status.st_size, str(status.st_mtime_ns))
        return found

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        return read_bounded(self.folder / name, MAX_INDEX_BYTES)

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        descriptor = os.open(self.folder / name, os.O_RDONLY)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)

    def open(self, name: str) -> BinaryIO:
        return open_regular(self.folder / name)

    def must_copy(self, names: Sequence[str]) -> bool:
        return False

    def write_index(self, name: str, content: bytes) -> None:
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, content)


def file_sum(file: BinaryIO) -> str:
    """Return the SHA-256 sum of the rest of a file."""
    digest = hashlib.sha256()
    while True:
        block = file.read(BLOCK_BYTES)
        if not block:
            return digest.hexdigest()
        digest.update(block)
