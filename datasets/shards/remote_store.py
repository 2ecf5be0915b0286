"""Shards at any place that fsspec reads (s3://, gs://, https://, ...), as they are or copied to a cache."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO, Dict, Mapping, Optional, Sequence, Set

from configs.atomic_file import replace_file
from configs.bounded_file import KIB, read_bounded
from configs.passwords import hide_passwords
from datasets.errors import StoreError
from datasets.fetch_lock import fetch_lock
from datasets.shards.index import SUFFIX
from datasets.shards.store import BLOCK_BYTES, MAX_INDEX_BYTES, NOT_TOLD, SUBFOLDERS, FolderStore, StoredFile

# Before a request that failed is made again. A place that is gone for longer ends the run, which is saved.
PAUSES_SECONDS = (1.0, 4.0, 16.0)
# What the kinds of places call that which changes with the content of a file, in small letters and the surest first.
VERSIONS = (
    "etag", "contentmd5", "md5hash", "digest", "mtime", "lastmodified", "updated", "modificationtime", "modify",
    "created",
)  # fmt: skip
VERSION_SUFFIX = ".version"  # beside each copy in a cache


class RemoteStore:
    """A place that fsspec reads. With a cache folder, whole shards are copied there when they are first needed.

    Args:
        url: e.g. s3://bucket/imagenet.
        cache: folder of the copies; None: each image is read by one ranged request.

    Passwords in the URL are sent to the server and appear nowhere else.
    """

    def __init__(self, url: str, cache: Optional[Path]) -> None:
        self.url = url.rstrip("/")
        self.shown_url = hide_passwords(self.url)
        # one cache folder serves several places
        self.cache = FolderStore(cache / hashlib.sha256(self.shown_url.encode()).hexdigest()[:16]) if cache else None
        self.listing: Dict[str, StoredFile] = {}
        self.copied: Set[str] = set()
        self.connections: Dict[int, Any] = {}

    def __getstate__(self) -> Dict[str, Any]:
        return {**self.__dict__, "connections": {}}

    def connection(self) -> Any:
        """Return this process's file system: fsspec's own threads do not survive a fork.

        Raises:
            StoreError: fsspec, or what it needs for this kind of URL, is not installed.
            Exception: some kinds of places are connected to at once; what that raises is theirs.
        """
        try:
            import fsspec

            if os.getpid() not in self.connections:
                file_system, _ = fsspec.core.url_to_fs(self.url, skip_instance_cache=True)
                self.connections[os.getpid()] = file_system
        except (ImportError, ValueError) as error:
            reason = hide_passwords(str(error))
            raise StoreError(
                f"data.dir {self.shown_url}: {reason}; install what it names, or copy the shards to a folder"
            ) from error
        return self.connections[os.getpid()]

    def ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of the file system, connecting first, and again after growing pauses where either fails.

        Raises:
            FileNotFoundError, PermissionError: at once.
            OSError: it failed each time; the kinds of file systems raise exceptions of any class for that.
        """
        pauses = iter(PAUSES_SECONDS)
        while True:
            try:
                return getattr(self.connection(), method)(*arguments, **options)
            except (StoreError, FileNotFoundError, PermissionError):
                raise
            except Exception as error:
                reason = hide_passwords(f"{type(error).__name__}: {error}")
                pause = next(pauses, None)
                if pause is None:
                    raise OSError(f"failed {len(PAUSES_SECONDS) + 1} times, at last with {reason}") from error
            logging.getLogger(__name__).warning(
                "%s: %s; trying again in %g s", hide_passwords(arguments[0]), reason, pause
            )
            time.sleep(pause)
            self.connections.pop(os.getpid(), None)  # it may be what broke

    def files(self) -> Dict[str, StoredFile]:
        found: Dict[str, StoredFile] = {}
        for place in ("",) + tuple(f"/{subfolder}" for subfolder in SUBFOLDERS):
            try:
                entries = self.ask("ls", self.url + place, detail=True)
            except FileNotFoundError:
                continue
            for entry in entries:
                if entry["type"] == "file":
                    name = f"{place}/{entry['name'].rstrip('/').rpartition('/')[2]}".lstrip("/")
                    # a listing of web pages tells neither size nor time
                    known = entry if entry["size"] is not None else self.ask("info", self.place(name))
                    found[name] = StoredFile(int(known["size"]), version_of(known))
        self.listing = found
        # those that exist in the cache alone are indices that had to be built
        cached = self.cache.files() if self.cache else {}
        return {**{name: file for name, file in cached.items() if name.endswith(SUFFIX)}, **found}

    def path(self, name: str) -> str:
        return f"{self.shown_url}/{name}"

    def place(self, name: str) -> str:
        """Return the URL of a file, with its password."""
        return f"{self.url}/{name}"

    def read(self, name: str) -> bytes:
        if self.cache and name not in self.listing:
            return self.cache.read(name)
        size = self.listing[name].num_bytes if name in self.listing else 0
        if size > MAX_INDEX_BYTES:
            raise OSError(f"{self.path(name)} has {size:,} bytes, over the limit of {MAX_INDEX_BYTES:,}")
        return bytes(self.ask("cat_file", self.place(name)))

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        if self.cache:
            self.copy(name)
            return self.cache.read_range(name, offset, length)
        return bytes(self.ask("cat_file", self.place(name), start=offset, end=offset + length))

    def open(self, name: str) -> BinaryIO:
        if self.cache:
            self.copy(name)
            return self.cache.open(name)
        return io.BufferedReader(RemoteFile(self, name), BLOCK_BYTES)

    def must_copy(self, names: Sequence[str]) -> bool:
        return self.cache is not None and not all(self.is_copied(name) for name in names)

    def write_index(self, name: str, content: bytes) -> None:
        if self.cache is None:
            raise OSError("data.cache_dir is not set")
        self.cache.write_index(name, content)

    def copy(self, name: str) -> None:
        """Copy a file to the cache unless it is there; of several processes, one copies and the others wait."""
        assert self.cache is not None
        if name in self.copied:
            return
        target = self.cache.folder / name
        with fetch_lock(target.parent, target.name):
            if not self.is_copied(name):
                prefix = f".copy-{target.name}-"
                for left in target.parent.glob(f"{prefix}*"):  # by a process that was ended: the lock is ours now
                    left.unlink()
                descriptor, temporary = tempfile.mkstemp(prefix=prefix, dir=target.parent)
                os.close(descriptor)
                try:
                    self.ask("get_file", self.place(name), temporary)
                    os.replace(temporary, target)
                finally:
                    if os.path.exists(temporary):
                        os.unlink(temporary)
                replace_file(version_path(target), self.listing[name].version.encode())
        self.copied.add(name)

    def is_copied(self, name: str) -> bool:
        """Whether the cache holds a file as it is at its place, as far as size and version tell."""
        assert self.cache is not None
        copy = self.cache.folder / name
        try:
            return StoredFile(copy.stat().st_size, read_bounded(version_path(copy), KIB).decode()) == self.listing[name]
        except FileNotFoundError:
            return False


class RemoteFile(io.RawIOBase):
    """A file at a URL, to read from anywhere in it: each read is one request."""

    def __init__(self, store: RemoteStore, name: str) -> None:
        self.store = store
        self.name = name
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    @property
    def size(self) -> int:
        return self.store.listing[self.name].num_bytes

    def readinto(self, buffer: Any) -> int:
        length = min(len(buffer), self.size - self.position)
        if length <= 0:
            return 0  # places refuse requests behind the end
        content = self.store.read_range(self.name, self.position, length)
        buffer[: len(content)] = content
        self.position += len(content)
        return len(content)


def version_of(entry: Mapping[str, Any]) -> str:
    """Return the version of a file from what its place tells about it, as a few characters without spaces."""
    told = {key.lower().replace("-", "").replace("_", ""): value for key, value in entry.items()}
    versions = [f"{key} {told[key]}" for key in VERSIONS if told.get(key)]
    return hashlib.sha256(versions[0].encode()).hexdigest()[:16] if versions else NOT_TOLD


def version_path(copy: Path) -> Path:
    return copy.with_name(copy.name + VERSION_SUFFIX)
