"""Code planted in files, which leaves a canary where it is run."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import torch

Records = Dict[str, bytes]


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Tuple[Callable[[str], int], Tuple[str]]:
        return os.system, (f"touch {self.canary}",)


class Nested:
    """Has torch.load run a second file when it is unpickled, with names of torch alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return torch.load, (str(self.path), "cpu", None)


def records_of(path: Path) -> Records:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_records(path: Path, records: Records) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def with_records(data: bytes, records: Records) -> bytes:
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def odd_name(canary: Path) -> bytes:
    """Return a second pickle in an archive of weights, under a name in capitals."""
    return with_records(pickled({"w": torch.ones(1)}), {"archive/EXTRA.PKL": pickle.dumps(Payload(canary), protocol=2)})


def legacy_tar(canary: Path) -> bytes:
    """Return the format of torch 0.1: a tar file with pickles in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("pickle", "storages", "tensors", "sys_info"):
            content = pickle.dumps(Payload(canary), protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def legacy_stream(canary: Path) -> bytes:
    """Return the format before torch 1.6: several pickles one after another."""
    buffer = io.BytesIO()
    torch.save({"w": Payload(canary)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def bare_pickle(canary: Path) -> bytes:
    return pickle.dumps({"state_dict": Payload(canary)})
