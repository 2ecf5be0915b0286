"""Checkpoints: written whole or not at all, verified when read, and free of code.

Each is two files:

    checkpoints/step_00001234.pt      tensors and builtins (see checkpoint_schema), read with weights_only
    checkpoints/step_00001234.json    its manifest: size and SHA-256, and the step of the best checkpoint by then (null
                                      without a validation split); written last; what has none does not count

A checkpoint that a kept manifest calls the best is kept too. So whichever of them a run continues from, the best one of
its past is there.

A loader of other people's files may rely on it: nothing in a checkpoint is ever run.
"""

from __future__ import annotations

import io
import logging
import os
import re
import signal
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Union

import torch

from configs.atomic_file import partial_files, replace_file, sync_folder
from experiment.checkpoint_schema import check_state
from experiment.manifest import (
    FORMAT,
    best_by,
    checkpoint_name,
    has_manifest,
    read,
    read_verified,
    write_manifest,
)
from experiment.torch_archive import RefusedError, first_line, load_tensors
from training.weights import CheckpointError, shown

LOGGER = logging.getLogger(__name__)
CRASH_POINTS = ("before_write", "mid_write", "before_replace", "after_replace", "before_manifest")
_NAME = re.compile(r"step_(\d{8,})\.(pt|json)")


def save_checkpoint(
    folder: Union[str, Path], state: Mapping[str, Any], step: int, keep: int, best: Optional[int] = None
) -> Path:
    """Write `state` to folder/step_<step>.pt, then its manifest, then remove what is no longer kept.

    Checkpoints of later steps are removed too: they belong to a future that this run left by resuming before it.

    Args:
        folder: made if it is missing.
        state: see checkpoint_schema, without "format", which is added here; tensors (moved to the CPU) and builtins.
        step: weight updates done; equals state["step"].
        keep: number of newest checkpoints that stay, this one included; with those that their manifests call the best.
        best: step of the best checkpoint so far; None where nothing decides which that is.

    Raises:
        CheckpointError: what checkpoint_schema refuses, or a value of another type.
        DiskFullError, OSError: it cannot be written; older checkpoints are intact.
    """
    plain = {"format": FORMAT, **_plain_dict(state, "state")}
    check_state(plain, "the state to save")
    if state["step"] != step:
        raise CheckpointError(f"state['step'] is {state['step']}, but step is {step}; they must be equal")
    if keep < 1:
        raise CheckpointError(f"keep {keep} must be at least 1")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Serialized in memory: torch.save on a full disk leaves a torn file and a misleading message.
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    data = buffer.getbuffer()
    path = folder / checkpoint_name(step)
    replace_file(path, data, passing=_crash_point)
    _crash_point("before_manifest")
    write_manifest(path, data, step, best)
    newest = [known for known in _known_steps(folder) if known <= step][-keep:]
    kept = {*newest, *(best_by(folder, known) for known in newest)}
    _remove([path for path in _checkpoint_files(folder) if _step_of(path) not in kept], folder)
    return path


def has_checkpoint(folder: Union[str, Path]) -> bool:
    """Whether a checkpoint was ever finished in `folder`, intact or not; nothing is read."""
    return bool(_known_steps(Path(folder)))


def checkpoints_of(folder: Union[str, Path]) -> Dict[int, Path]:
    """Return the checkpoints of `folder` by their steps, ascending, intact or not; nothing is read."""
    paths = {_step_of(path): path for path in _checkpoint_files(Path(folder)) if path.suffix == ".pt"}
    return dict(sorted(paths.items()))


def newest_checkpoint(folder: Union[str, Path], tell: Callable[[str], None] = LOGGER.warning) -> Optional[Path]:
    """Return the newest intact checkpoint of `folder`, or None if none was ever finished.

    A checkpoint that is not intact is skipped, and `tell` is called with a message that names what is wrong. One that a
    run removes meanwhile, because it has written newer ones, is none of them.

    Raises:
        CheckpointError: finished checkpoints exist, and none is intact: starting again would hide that.
    """
    folder = Path(folder)
    problems: List[str] = []
    known = _known_steps(folder)
    unfinished = {_step_of(path) for path in _checkpoint_files(folder)} - set(known)
    for step in sorted(unfinished, reverse=True):
        tell(f"skipping {folder / checkpoint_name(step)}: it was never finished (no manifest)")
    for step in reversed(known):
        path = folder / checkpoint_name(step)
        try:
            read_verified(path)
        except CheckpointError as error:
            newer = max(_known_steps(folder), default=0)
            if newer > known[-1]:
                return newest_checkpoint(folder, tell)
            problems.append(str(error))
            tell(f"skipping a checkpoint: {error}")
        else:
            return path
    if problems:
        raise CheckpointError(
            f"no checkpoint in {folder} is intact: {'; '.join(problems)}. Restore one, or remove the folder"
        )
    return None


def best_checkpoint(folder: Union[str, Path]) -> Optional[Path]:
    """Return the best checkpoint by the validation split, as the newest intact one of `folder` knows it, or None.

    Raises:
        CheckpointError: it is not intact.
    """
    newest = newest_checkpoint(folder)
    best = None if newest is None else best_by(Path(folder), _step_of(newest))
    if best is None:
        return None
    path = Path(folder) / checkpoint_name(best)
    read_verified(path)
    return path


def load_checkpoint(path: Union[str, Path]) -> Dict[str, Any]:
    """Read a checkpoint, on the CPU, without running any code from it.

    Its manifest is verified if there is one; a checkpoint that was copied without it is read as it is.

    Raises:
        CheckpointError: a file that is missing, torn, altered, of a newer format, not a checkpoint, or that asks for
            code to be run.
    """
    path = Path(path)
    state = read_archive(path)
    check_checkpoint(state, path)
    named = _NAME.fullmatch(path.name)
    if named is not None and int(named.group(1)) != state["step"]:
        raise CheckpointError(
            f"{path} is of step {state['step']}, but its name says another; give it its own name again"
        )
    return state


def read_archive(path: Union[str, Path]) -> Any:
    """Return what torch.save put into a file, on the CPU, without running any code from it.

    Raises:
        CheckpointError: a file that is missing, torn, altered, no zip archive, or that asks for code to be run.
    """
    path = Path(path)
    data = read_verified(path) if has_manifest(path) else read(path)
    try:
        return load_tensors(data)
    except RefusedError as error:
        raise CheckpointError(f"{path} {error}") from error
    except Exception as error:  # unknown bytes are read here: what is raised depends on them and on torch's version
        raise CheckpointError(
            f"{path} ({len(data)} bytes) is truncated or not a checkpoint: {first_line(error)}"
        ) from error


def check_checkpoint(state: Any, path: Path) -> None:
    """Refuse an object that is not a checkpoint of this program in today's format.

    Raises:
        CheckpointError: as said.
    """
    if not isinstance(state, dict) or "format" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of this program: it has no entry 'format'")
    if type(state["format"]) is not int or state["format"] != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {shown(state['format'])}, and this program reads format {FORMAT}; "
            "use the version of the program that wrote it"
        )
    check_state(state, str(path))


def remove_partial_files(folder: Union[str, Path]) -> None:
    """Remove what a killed writer left in `folder`: temporary files, and checkpoints without a manifest.

    Only for the process that owns the run folder, before it writes: another one may be writing right now.
    """
    folder = Path(folder)
    known = _known_steps(folder)
    stale = [path for path in _checkpoint_files(folder) if _step_of(path) not in known]
    _remove(stale + partial_files(folder), folder)


def check_norm(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse weights that were trained with another normalization.

    The same weights give other outputs when group norm groups channels c // (C / G) (contiguous) or c mod G (strided),
    or when another number is added to a variance, and no shape shows the difference.

    Args:
        saved: name, num_groups, grouping, eps and proxy_eps of the checkpoint's norm.
        current: those of this run's norm.

    Raises:
        CheckpointError: they differ; the message has both values of each difference.
    """
    names = sorted(set(saved) | set(current))
    different = [
        f"{name} {saved.get(name)!r} in the checkpoint, {current.get(name)!r} here"
        for name in names
        if saved.get(name) != current.get(name)
    ]
    if different:
        raise CheckpointError(
            f"the checkpoint was trained with another norm: {'; '.join(different)}. "
            f"Set norm in the configuration to the checkpoint's values{_other_way(saved, current)}"
        )


def _other_way(saved: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    if saved.get("name") != "batch" or current.get("name") not in ("group", "layer", "instance"):
        return ""
    return (
        "; to begin a new training with this norm from a network with batch norm, give --set model.pretrained and "
        "--set model.calibration_images=512"
    )


def _crash_point(point: str) -> None:
    """Kill this process at the point named by PROXYNORM_CRASH_AT: crash tests die exactly inside a write."""
    wanted = os.environ.get("PROXYNORM_CRASH_AT")
    if wanted is not None and wanted not in CRASH_POINTS:
        raise CheckpointError(f"PROXYNORM_CRASH_AT={wanted} is not a crash point; use one of {', '.join(CRASH_POINTS)}")
    if wanted == point:
        os.kill(os.getpid(), signal.SIGKILL)


def _plain_dict(value: Mapping[str, Any], where: str) -> Dict[Any, Any]:
    return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}


def _plain(value: Any, where: str) -> Any:
    """Return the value made of tensors and builtins; types are compared exactly (numpy's float64 is a float too)."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        # torch.save writes the whole storage behind a view.
        return tensor.clone() if tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size() else tensor
    if isinstance(value, dict):
        return _plain_dict(value, where)
    if type(value) in (list, tuple):
        return type(value)(_plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise CheckpointError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}; checkpoints hold tensors and builtins"
    )


def _checkpoint_files(folder: Path) -> List[Path]:
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []


def _known_steps(folder: Path) -> List[int]:
    """Return steps that have a manifest, ascending; by the number in the name, as clocks jump."""
    return sorted(_step_of(path) for path in _checkpoint_files(folder) if path.suffix == ".json")


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match.group(1))


def _remove(paths: List[Path], folder: Path) -> None:
    # Manifests first: killed in between, a checkpoint without a manifest is left, which counts for nothing.
    for path in sorted(paths, key=lambda path: path.suffix != ".json"):
        path.unlink()
    if paths:
        sync_folder(folder)
