"""Reading the weights that a network is to start from, out of whatever file holds them; no code in it is ever run."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import torch
from torch import Tensor
from typing_extensions import Literal

from configs.bounded_file import MIB, read_bounded
from experiment.checkpoint import MAX_CHECKPOINT_BYTES, check_checkpoint, has_manifest, newest_checkpoint, read_archive
from experiment.run_folder import RunFolder
from training.weights import CheckpointError, plain_name

LOGGER = logging.getLogger(__name__)
MAX_HEADER_BYTES = 16 * MIB  # of a .safetensors file: 100,000 tensors


AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict")  # timm's entry, torchvision's, and others'
ENTRIES = ("state_dict", "model", "model_state_dict")  # timm's and Lightning's, torchvision's, and others'
WhichWeights = Literal["average", "last"]


@dataclass(frozen=True)
class SavedWeights:
    """A network's weights as a file holds them.

    Attributes:
        path: of the file.
        tensors: by name.
        which: "average" over time, "last", or "as saved" where the file does not say.
        entry: where in the file they are; None: they are all of it.
        norm: what decides how they are to be read (experiment.checkpoint.check_norm); None where the file does not say.
        config: the configuration that they were trained with; None where the file does not say.
        class_names: the classifier's classes, by label; None where the file does not say.
        step: weight updates done; None where the file does not say.
        checked_by: what shows that no bit has changed since they were written; None: nothing does.
    """

    path: Path
    tensors: Dict[str, Tensor]
    which: str = "as saved"
    entry: Optional[str] = None
    norm: Optional[Mapping[str, Any]] = None
    config: Optional[Mapping[str, Any]] = None
    class_names: Optional[Tuple[str, ...]] = None
    step: Optional[int] = None
    checked_by: Optional[str] = None

    @property
    def is_average(self) -> bool:
        return self.which == "average"


def read_weights(path: Union[str, Path], which: Optional[WhichWeights] = None) -> SavedWeights:
    """The weights of a checkpoint of this program, or of a state dict.

    A run folder stands for its newest intact checkpoint.
    A state dict is a .safetensors file, or one of torch.save: tensors by name, alone or as an entry of AVERAGES or
    ENTRIES, or as Composer has them, in "state" and "model". Prefixes of wrappers are taken off the names: `module.`
    (distributed training, AveragedModel) and `_orig_mod.` (torch.compile). What else training scripts save is left.

    Args:
        which: an average of the weights over time, or the last ones; None: the average, where there is one.

    Raises: CheckpointError for a file that is missing, torn, of another kind, that asks for code to be run, or that
        lacks the weights asked for.
    """
    path = Path(path)
    if path.is_dir():
        newest = newest_checkpoint(RunFolder(path).checkpoints)
        if newest is None:
            raise CheckpointError(f"{path} is no folder of a run with a checkpoint; name a file, or train it first")
        path = newest
    if path.suffix == ".safetensors":
        found = [SavedWeights(path, _read_safetensors(path))]
    else:
        saved = read_archive(path)
        is_ours = isinstance(saved, dict) and "format" in saved and "model" in saved
        found = _of_checkpoint(saved, path) if is_ours else _of_archive(saved, path)
    if which is not None:
        asked = [weights for weights in found if weights.which == which]
        if not asked:
            there = " and ".join(f"the weights {weights.which}" for weights in found)
            raise CheckpointError(f"{path} has no weights that are known to be the {which}; it has {there}")
        found = asked
    chosen = found[0]
    if len(found) > 1:
        LOGGER.info(
            "%s has %s: the first are taken",
            path,
            " and ".join(f"{weights.entry} ({weights.which})" for weights in found),
        )
    return dataclasses.replace(chosen, tensors=_plain_names(chosen.tensors, path), checked_by=_checked_by(path))


def _checked_by(path: Path) -> Optional[str]:
    """The format safetensors has no sum of its own."""
    if path.suffix == ".safetensors":
        return None
    return "SHA-256" if has_manifest(path) else "CRC-32"


def _of_checkpoint(saved: Any, path: Path) -> List[SavedWeights]:
    """Of one of this program: the average first, where it has one."""
    check_checkpoint(saved, path)
    facts = {"norm": saved["norm"], "config": saved["config"], "step": saved["step"]}
    last = SavedWeights(path, saved["model"], "last", "model", class_names=tuple(saved["class_names"]), **facts)
    average = saved["average"]
    if average is None or average["updates"] == 0:  # 0: averaged by epoch, stopped within the first
        return [last]
    return [dataclasses.replace(last, tensors=average["weights"], which="average", entry="average"), last]


def _of_archive(saved: Any, path: Path) -> List[SavedWeights]:
    """Of another program's: averages first."""
    found = []
    entries = saved if isinstance(saved, dict) else {}
    inner = entries.get("state")  # Composer's
    if isinstance(inner, dict):
        entries = {**entries, "state.model": inner.get("model")}
    averages = [name for name in AVERAGES if _are_tensors(entries.get(name))]
    for name in (*averages, *(name for name in (*ENTRIES, "state.model") if _are_tensors(entries.get(name)))):
        which = "average" if name in averages else "last" if averages else "as saved"
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
            weights, which="average", tensors={name: t for name, t in weights.tensors.items() if name != "n_averaged"}
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
    except Exception as error:  # its own error types, and OSError: unknown bytes are read here
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    return tensors
