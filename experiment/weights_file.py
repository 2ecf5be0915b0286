"""Reading the weights that a network is to start from, out of whatever file holds them; no code in it is ever run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple, Union

import torch
from torch import Tensor

from configs.bounded_file import MIB, read_bounded
from experiment.checkpoint import best_checkpoint, check_checkpoint, newest_checkpoint, read_archive
from experiment.manifest import MAX_CHECKPOINT_BYTES
from experiment.run_folder import RunFolder
from training.weights import CheckpointError, plain_name

NEWEST, BEST = "newest", "best"  # which checkpoint of a run folder
AVERAGE, LAST = "average", "last"  # which weights of a checkpoint
MAX_HEADER_BYTES = 16 * MIB  # of a .safetensors file: 100,000 tensors


@dataclass(frozen=True)
class SavedWeights:
    """A network's weights as a file holds them.

    Attributes:
        path: of the file.
        tensors: by name.
        norm: what decides how they are to be read (experiment.checkpoint.check_norm); None where the file does not say.
        is_average: whether they are an average over time.
        config: the configuration that they were trained with; None where the file does not say.
        class_names: the classifier's classes, by label; None where the file does not say.
        step: weight updates that they had; None where the file does not say.
    """

    path: Path
    tensors: Dict[str, Tensor]
    norm: Optional[Mapping[str, Any]] = None
    is_average: bool = False
    config: Optional[Mapping[str, Any]] = None
    class_names: Optional[Tuple[str, ...]] = None
    step: Optional[int] = None


def read_weights(path: Union[str, Path], checkpoint: str = NEWEST, weights: Optional[str] = None) -> SavedWeights:
    """The weights of a checkpoint of this program, or of a state dict.

    Args:
        path: of a file, or of a run folder.
        checkpoint: of a run folder: NEWEST, its newest intact one, or BEST, the best one by its validation split.
        weights: of a checkpoint: AVERAGE over time, or LAST; None: the average where it has one.

    A state dict is a .safetensors file, or one of torch.save with tensors by name, alone or as its entry "state_dict"
    or "model". The prefixes `module.` and `_orig_mod.` are taken off the names.

    Raises: CheckpointError for a file that is missing, torn, of another kind, or that asks for code to be run, and for
        a checkpoint or weights that are not there.
    """
    path = Path(path)
    if path.is_dir():
        path = _checkpoint_of(path, checkpoint)
    elif checkpoint == BEST:
        raise CheckpointError(f"{path} is a file, and the best checkpoint is one of a run folder; name that folder")
    if weights is not None and path.suffix == ".safetensors":
        raise _without_choice(path, weights)
    if path.suffix == ".safetensors":
        return SavedWeights(path, _plain_names(_read_safetensors(path)))
    saved = read_archive(path)
    if isinstance(saved, dict) and "format" in saved:
        check_checkpoint(saved, path)
        average = saved["average"]
        has_average = average is not None and average["updates"] > 0  # 0: averaged by epoch, stopped within the first
        if weights == AVERAGE and not has_average:
            raise CheckpointError(f"{path} holds no average of its weights (averaging.every never, or none made yet)")
        is_average = has_average and weights != LAST
        tensors = average["weights"] if is_average else saved["model"]
        facts = (saved["norm"], is_average, saved["config"], tuple(saved["class_names"]), saved["step"])
        return SavedWeights(path, _plain_names(tensors), *facts)
    if weights is not None:
        raise _without_choice(path, weights)
    for key in ("state_dict", "model"):
        if isinstance(saved, dict) and isinstance(saved.get(key), dict):
            saved = saved[key]
    if not isinstance(saved, dict) or not saved or not all(isinstance(value, Tensor) for value in saved.values()):
        raise CheckpointError(
            f"{path} holds no weights: neither a checkpoint of this program nor a dictionary of tensors; "
            "save model.state_dict()"
        )
    return SavedWeights(path, _plain_names(saved))


def _checkpoint_of(folder: Path, which: str) -> Path:
    checkpoints = RunFolder(folder).checkpoints
    newest = newest_checkpoint(checkpoints)
    if newest is None:
        raise CheckpointError(f"{folder} is no folder of a run with a checkpoint; name a file, or train it first")
    if which == NEWEST:
        return newest
    best = best_checkpoint(checkpoints)
    if best is None:
        raise CheckpointError(
            f"{folder} has no best checkpoint: its run held no images out to choose by; train with "
            "--set data.validation_images=N, or take the newest"
        )
    return best


def _without_choice(path: Path, weights: str) -> CheckpointError:
    return CheckpointError(f"{path} is no checkpoint of this program, so it has no {weights} weights to choose")


def _plain_names(tensors: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    return {plain_name(name): tensor for name, tensor in tensors.items()}


def _read_safetensors(path: Path) -> Dict[str, Tensor]:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise CheckpointError(
            f"{path}: reading it needs the package safetensors; pip install -r requirements.txt"
        ) from error
    try:
        data = read_bounded(path, MAX_CHECKPOINT_BYTES)
        header = int.from_bytes(data[:8], "little")
        if header > MAX_HEADER_BYTES:
            raise ValueError(f"its header says that it has {header:,} bytes, over the limit of {MAX_HEADER_BYTES:,}")
        tensors: Dict[str, torch.Tensor] = load(data)
    except Exception as error:  # its own error types, and OSError: unknown bytes are read here
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    return tensors
