"""Reading the weights that a network is to start from, out of whatever file holds them; no code in it is ever run."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import torch
from torch import Tensor

from configs.bounded_file import MIB, parse_json, read_bounded
from experiment.checkpoint import best_checkpoint, check_checkpoint, newest_checkpoint, read_archive
from experiment.manifest import MAX_CHECKPOINT_BYTES, has_manifest
from experiment.run_folder import RunFolder
from experiment.torch_archive import first_line
from training.weights import CheckpointError, plain_name

LOGGER = logging.getLogger(__name__)
MAX_HEADER_BYTES = 16 * MIB  # of a .safetensors file: 100,000 tensors


NEWEST, BEST = "newest", "best"  # which checkpoint of a run folder
AVERAGE, LAST = "average", "last"  # which weights
AS_SAVED = "as saved"  # of a file that does not say
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict")  # timm's entry, torchvision's, and others'
ENTRIES = ("state_dict", "model", "model_state_dict")  # timm's and Lightning's, torchvision's, and others'


@dataclass(frozen=True)
class SavedWeights:
    """A network's weights as a file holds them.

    Attributes:
        path: of the file.
        tensors: by name.
        which: AVERAGE over time, LAST, or AS_SAVED.
        entry: where in the file they are; None: they are all of it.
        norm: what decides how they are to be read (experiment.checkpoint.check_norm); None where the file does not say.
        config: the configuration that they were trained with; None where the file does not say.
        class_names: the classifier's classes, by label; None where the file does not say.
        step: weight updates done; None where the file does not say.
        checked_by: what shows that no bit has changed since they were written; None: nothing does.
    """

    path: Path
    tensors: Dict[str, Tensor]
    which: str = AS_SAVED
    entry: Optional[str] = None
    norm: Optional[Mapping[str, Any]] = None
    config: Optional[Mapping[str, Any]] = None
    class_names: Optional[Tuple[str, ...]] = None
    step: Optional[int] = None
    checked_by: Optional[str] = None

    @property
    def is_average(self) -> bool:
        return self.which == AVERAGE


def read_weights(path: Union[str, Path], checkpoint: str = NEWEST, weights: Optional[str] = None) -> SavedWeights:
    """Return the weights of a checkpoint of this program, or of a state dict.

    Args:
        path: of a file, or of a run folder.
        checkpoint: of a run folder: NEWEST, its newest intact one, or BEST, the best one by its validation split.
        weights: AVERAGE over time, or LAST; None: the average where there is one.

    A state dict is a .safetensors file, or one of torch.save: tensors by name, alone or as an entry of AVERAGES or
    ENTRIES, or as Composer has them, in "state" and "model". Prefixes of wrappers are taken off the names: `module.`
    (distributed training, AveragedModel) and `_orig_mod.` (torch.compile). What else training scripts save is left.

    Raises:
        CheckpointError: a file that is missing, torn, of another kind, or that asks for code to be run, and for a
            checkpoint or weights that are not there.
    """
    path = Path(path)
    if path.is_dir():
        file = _checkpoint_of(path, checkpoint)
        try:
            return read_weights(file, weights=weights)
        except CheckpointError:
            if file.exists():
                raise
        return read_weights(path, checkpoint, weights)  # a run that goes on removed it, and has written newer ones
    if checkpoint == BEST:
        raise CheckpointError(f"{path} is a file, and only run folders have a best checkpoint; name the run folder")
    if path.suffix == ".safetensors":
        found = [SavedWeights(path, _read_safetensors(path))]
    else:
        saved = read_archive(path)
        is_ours = isinstance(saved, dict) and "format" in saved
        found = _of_checkpoint(saved, path) if is_ours else _of_archive(saved, path)
    asked = [one for one in found if weights in (None, one.which)]
    if not asked:
        what = "average of its weights" if weights == AVERAGE else "weights that are known to be the last"
        raise CheckpointError(f"{path} holds no {what}, only weights {' and '.join(one.which for one in found)}")
    chosen = asked[0]
    if len(asked) > 1:
        LOGGER.info(
            "%s: using the %s weights; the file has %s", path, chosen.which, " and ".join(o.which for o in found)
        )
    return dataclasses.replace(chosen, tensors=_plain_names(chosen.tensors, path), checked_by=_checked_by(path))


def _checkpoint_of(folder: Path, which: str) -> Path:
    checkpoints = RunFolder(folder).checkpoints
    newest = newest_checkpoint(checkpoints)
    if newest is None:
        raise CheckpointError(f"{folder} is not a run folder with a checkpoint; name a file, or train it first")
    if which == NEWEST:
        return newest
    best = best_checkpoint(checkpoints)
    if best is None:
        raise CheckpointError(
            f"{folder} has no best checkpoint: its run held no images out to choose by; train with "
            "--set data.validation_images=N, or take the newest"
        )
    return best


def _checked_by(path: Path) -> Optional[str]:
    """Return the format safetensors has no sum of its own."""
    if path.suffix == ".safetensors":
        return None
    return "SHA-256" if has_manifest(path) else "CRC-32"


def _of_checkpoint(saved: Any, path: Path) -> List[SavedWeights]:
    """Of one of this program: the average first, where it has one."""
    check_checkpoint(saved, path)
    facts = {"norm": saved["norm"], "config": saved["config"], "step": saved["step"]}
    last = SavedWeights(path, saved["model"], LAST, "model", class_names=tuple(saved["class_names"]), **facts)
    average = saved["average"]
    if average is None or average["updates"] == 0:  # 0: averaged by epoch, stopped within the first
        return [last]
    return [dataclasses.replace(last, tensors=average["weights"], which=AVERAGE, entry="average"), last]


def _of_archive(saved: Any, path: Path) -> List[SavedWeights]:
    """Of another program's: averages first."""
    found = []
    entries = saved if isinstance(saved, dict) else {}
    inner = entries.get("state")  # Composer's
    if isinstance(inner, dict):
        entries = {**entries, "state.model": inner.get("model")}
    averages = [name for name in AVERAGES if _are_tensors(entries.get(name))]
    for name in (*averages, *(name for name in (*ENTRIES, "state.model") if _are_tensors(entries.get(name)))):
        which = AVERAGE if name in averages else LAST if averages else AS_SAVED
        found.append(SavedWeights(path, entries[name], which, name))
    if not found and _are_tensors(saved):
        found.append(SavedWeights(path, saved))
    if not found:
        raise CheckpointError(
            f"{path} holds no weights: neither a checkpoint of this program nor a dictionary of tensors; "
            "save model.state_dict()"
        )
    # torch.optim.swa_utils.AveragedModel counts its updates beside the weights.
    return [
        dataclasses.replace(
            weights, which=AVERAGE, tensors={name: t for name, t in weights.tensors.items() if name != "n_averaged"}
        )
        if "n_averaged" in weights.tensors
        else weights
        for weights in found
    ]


def _are_tensors(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )


def _plain_names(tensors: Mapping[str, Tensor], path: Path) -> Dict[str, Tensor]:
    plain: Dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if plain_name(name) in plain:
            raise CheckpointError(f"{path}: two entries are {plain_name(name)} once their prefixes are taken off")
        plain[plain_name(name)] = tensor
    return plain


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
        parse_json(data[8 : 8 + header], must_differ=True)
        if not tensors:
            raise ValueError("it holds no tensors")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error.strerror}") from error
    except Exception as error:  # its own error types: unknown bytes are read here
        raise CheckpointError(f"{path} cannot be read as safetensors: {first_line(error)}") from error
    return tensors
