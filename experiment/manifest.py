"""The manifest beside each checkpoint: its size and SHA-256, and which checkpoint was the best when it was written."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Optional

from configs.atomic_file import replace_file
from configs.bounded_file import GIB, KIB, parse_json, read_bounded
from training.weights import CheckpointError

FORMAT = 3
# The largest network here has 0.4 GB of weights; a checkpoint holds up to four copies. Reading takes twice its size.
MAX_CHECKPOINT_BYTES = 8 * GIB
MAX_MANIFEST_BYTES = 64 * KIB  # it has about 150
_NAME = re.compile(r"step_\d{8,}\.pt")


def checkpoint_name(step: int) -> str:
    """Return the file of the checkpoint of `step`."""
    return f"step_{step:08d}.pt"


def write_manifest(path: Path, data: Any, step: int, best: Optional[int]) -> None:
    """Write the manifest of the checkpoint at `path`, atomically.

    Args:
        path: of the checkpoint.
        data: the checkpoint's bytes.
        step: weight updates done.
        best: step of the best checkpoint so far; None where nothing decides which that is.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    manifest = {"format": FORMAT, "step": step, "size": len(data), "sha256": sha256, "best": best}
    replace_file(path.with_suffix(".json"), (json.dumps(manifest) + "\n").encode("ascii"))


def best_by(folder: Path, step: int) -> Optional[int]:
    """Return the step of the best checkpoint when that of `step` was written; None where its manifest does not say."""
    path = (folder / checkpoint_name(step)).with_suffix(".json")
    try:
        best = parse_json(read(path, MAX_MANIFEST_BYTES)).get("best")
    except (ValueError, AttributeError, CheckpointError):  # damaged: newest_checkpoint says so to who wants to use it
        return None
    return best if type(best) is int else None


def has_manifest(path: Path) -> bool:
    """Whether a sum of the file lies beside it.

    A .json beside a file of another name may be anything: it is a manifest if it has a size and a sum.
    """
    beside = path.with_suffix(".json")
    if _NAME.fullmatch(path.name) or not beside.is_file():
        return beside.exists()
    try:
        found = parse_json(read(beside, MAX_MANIFEST_BYTES))
    except (ValueError, CheckpointError):
        return False
    return isinstance(found, dict) and {"size", "sha256"} <= set(found)


def read_verified(path: Path) -> bytes:
    """Return the bytes of a checkpoint, equal to what its manifest says."""
    manifest_path = path.with_suffix(".json")
    try:
        manifest = parse_json(read(manifest_path, MAX_MANIFEST_BYTES))
        size, sha256 = int(manifest["size"]), str(manifest["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{manifest_path} is not a manifest: {error}") from error
    data = read(path)
    if len(data) != size:
        raise CheckpointError(f"{path} has {len(data)} bytes, its manifest says {size}: truncated or altered")
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise CheckpointError(f"{path}: hash mismatch, SHA-256 {found[:12]}... but {sha256[:12]}... in its manifest")
    return data


def read(path: Path, most: int = MAX_CHECKPOINT_BYTES) -> bytes:
    """Return the bytes of a file of a checkpoint.

    Raises:
        CheckpointError: it cannot be read or has more than `most`.
    """
    try:
        return read_bounded(path, most)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
