"""Where shards are: a folder, or any place that fsspec reads (s3://, gs://, https://, ...)."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Dict, Optional, Set

from typing_extensions import Protocol

from datasets.errors import DataError
from datasets.fetch_lock import fetch_lock

SUBFOLDERS = ("train", "val")
BLOCK_BYTES = 1 << 22


class ShardStore(Protocol):
    """Files of one place, by name; a name may begin with one of SUBFOLDERS."""

    def files(self) -> Dict[str, int]:
        """Return name and size in bytes of each file."""

    def path(self, name: str) -> str:
        """Return what people call the file."""

    def read(self, name: str) -> bytes: ...

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on, fewer where the file ends earlier."""

    def open(self, name: str) -> BinaryIO: ...

    def write_index(self, name: str, text: str) -> None:
        """Keep the text of a file that a later `read` finds, if there is a place for it."""


class FolderStore:
    """A folder of this machine.

    Files are opened for each access: that takes microseconds where decoding takes a thousand, and neither limits on
    open files nor processes that share them matter.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> Dict[str, int]:
        found: Dict[str, int] = {}
        for place in ("",) + SUBFOLDERS:
            if (self.folder / place).is_dir():
                with os.scandir(self.folder / place) as entries:
                    found.update((f"{place}/{e.name}".lstrip("/"), e.stat().st_size) for e in entries if e.is_file())
        return found

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        descriptor = os.open(self.folder / name, os.O_RDONLY)
        try:
            return os.pread(descriptor, length, offset)
        finally:
            os.close(descriptor)

    def open(self, name: str) -> BinaryIO:
        return open(self.folder / name, "rb")

    def write_index(self, name: str, text: str) -> None:
        try:
            replace_file(self.folder / name, text.encode())
        except OSError:
            pass  # a read-only folder: the index is built anew at each start


class RemoteStore:
    """A place that fsspec reads. With a cache folder, whole shards are copied there when they are first needed.

    Args:
        url: e.g. s3://bucket/imagenet.
        cache: folder of the copies; None: each image is read by one ranged request.

    Raises:
        DataError: fsspec, or what it needs for this kind of URL, is not installed.
    """

    def __init__(self, url: str, cache: Optional[Path]) -> None:
        self.url = url.rstrip("/")
        # one cache folder serves several places
        self.cache = FolderStore(cache / hashlib.sha256(self.url.encode()).hexdigest()[:16]) if cache else None
        self.sizes: Dict[str, int] = {}
        self.copied: Set[str] = set()
        self.connections: Dict[int, Any] = {}
        self.connection()

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "connections": {}}

    def connection(self) -> Any:
        """Return this process's file system: fsspec's own threads do not survive a fork."""
        try:
            import fsspec

            if os.getpid() not in self.connections:
                file_system, _ = fsspec.core.url_to_fs(self.url, skip_instance_cache=True)
                self.connections[os.getpid()] = file_system
        except (ImportError, ValueError) as error:
            raise DataError(
                f"data.dir {self.url}: {error}; install what it names, or copy the shards to a folder"
            ) from error
        return self.connections[os.getpid()]

    def files(self) -> Dict[str, int]:
        # those that exist in the cache alone are indices that had to be built
        found = self.cache.files() if self.cache else {}
        for place in ("",) + tuple(f"/{subfolder}" for subfolder in SUBFOLDERS):
            try:
                entries = self.connection().ls(self.url + place, detail=True)
            except FileNotFoundError:
                continue
            for entry in entries:
                if entry["type"] == "file":
                    name = f"{place}/{entry['name'].rstrip('/').rpartition('/')[2]}".lstrip("/")
                    size = entry["size"]  # a listing of web pages has none
                    found[name] = int(self.connection().size(self.path(name)) if size is None else size)
        self.sizes = found
        return found

    def path(self, name: str) -> str:
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes:
        if self.cache and (self.cache.folder / name).is_file():
            return self.cache.read(name)
        return bytes(self.connection().cat_file(self.path(name)))

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        if self.cache:
            self.copy(name)
            return self.cache.read_range(name, offset, length)
        return bytes(self.connection().cat_file(self.path(name), start=offset, end=offset + length))

    def open(self, name: str) -> BinaryIO:
        if self.cache:
            self.copy(name)
            return self.cache.open(name)
        file: BinaryIO = self.connection().open(self.path(name), "rb")
        return file

    def write_index(self, name: str, text: str) -> None:
        if self.cache:
            replace_file(self.cache.folder / name, text.encode())

    def copy(self, name: str) -> None:
        """Copy a file to the cache unless it is there; of several processes, one copies and the others wait."""
        assert self.cache is not None
        if name in self.copied:
            return
        target, size = self.cache.folder / name, self.sizes[name]
        with fetch_lock(target.parent, target.name):
            if not target.is_file() or target.stat().st_size != size:  # replaced at its place since it was copied
                descriptor, temporary = tempfile.mkstemp(prefix=".copy-", dir=target.parent)
                os.close(descriptor)
                try:
                    self.connection().get_file(self.path(name), temporary)
                    os.replace(temporary, target)
                finally:
                    if os.path.exists(temporary):
                        os.unlink(temporary)
        self.copied.add(name)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=".part-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp's own is for one user alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def file_sum(file: BinaryIO) -> str:
    """Return the SHA-256 sum of the rest of a file."""
    digest = hashlib.sha256()
    while True:
        block = file.read(BLOCK_BYTES)
        if not block:
            return digest.hexdigest()
        digest.update(block)
