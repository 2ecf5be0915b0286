"""Start from weights that were trained before: of this package, of timm or of torchvision."""

from __future__ import annotations

import logging
from typing import Dict, List, Mapping, Tuple

import torch

from configs.counted import counted
from models.foreign_names import foreign_names
from models.image_classifier import ImageClassifier

LOGGER = logging.getLogger(__name__)
OURS = "this package"
_SHOWN = 5


def load_pretrained(
    model: ImageClassifier, state_dict: Mapping[str, torch.Tensor], *, reset_classifier: bool = False
) -> str:
    """Copy a state dict into a network, all of it or nothing.

    Whose names the state dict has is found by counting; see models.foreign_names for networks that are the same. They
    may stand behind a prefix, such as Lightning's `model.` or `net.`, which is found by counting too; tensors without
    it belong to something beside the network, and a warning names them.

    Args:
        model: a network of this package.
        state_dict: of the same network here, or of the timm or torchvision network of the same architecture (which
            needs batch norm without proxy norm here). The 1x1 convolution that classifies in timm's ResNets becomes a
            linear layer.
        reset_classifier: leave the model's own classifier, randomly initialized, whatever the state dict has.

    Returns:
        whose names the state dict has: OURS, "timm" or "torchvision".

    dtype: real numbers are converted to the type of the model's own parameters; others are refused.

    Raises:
        ValueError: tensors are missing, left over or of another shape or type; they are listed by their names in the
            state dict.
    """
    own = model.state_dict()
    source, names, prefix = _choose_names(model, state_dict)
    if prefix:
        beside = [name for name in state_dict if not name.startswith(prefix)]
        if beside:
            ignored = counted(len(beside), "tensor")
            LOGGER.warning("%s beside the network in %r ignored: %s", ignored, prefix, _first(beside))
        state_dict = {name[len(prefix) :]: state_dict[name] for name in state_dict if name.startswith(prefix)}
    is_reset = {name for name in names if reset_classifier and _is_classifier(names[name])}
    # A count of updates, which torch's batch norm keeps and hardly ever reads; ours has none.
    counters = {f"{name[: -len('.running_mean')]}.num_batches_tracked" for name in names}
    loaded: Dict[str, torch.Tensor] = {name: own[name] for name in own if reset_classifier and _is_classifier(name)}
    shapes: List[str] = []
    types: List[str] = []
    for foreign, name in names.items():
        if foreign not in state_dict or foreign in is_reset:
            continue
        tensor = state_dict[foreign]
        if foreign == "head.fc.weight" and tensor.dim() == 4:
            tensor = tensor.flatten(1)
        if tensor.shape != own[name].shape:
            shapes.append(f"{foreign} {tuple(tensor.shape)}, here {name} {tuple(own[name].shape)}")
        if tensor.dtype != own[name].dtype and not (tensor.is_floating_point() and own[name].is_floating_point()):
            types.append(f"{foreign} {tensor.dtype}, here {name} {own[name].dtype}")
        loaded[name] = tensor
    differences = {
        "missing": [name for name in names if name not in state_dict and name not in is_reset],
        "unexpected": [name for name in state_dict if name not in names and name not in counters],
        "of another shape": shapes,
        "of another type": types,
    }
    if any(differences.values()):
        listed = "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in differences.items() if names)
        hint = ""
        if shapes and all("here classifier." in shape for shape in shapes):
            hint = (
                "Only the number of classes differs: to train another, set reset_classifier, which initializes it at "
                "random. "
            )
        raise ValueError(
            f"the state dict (names of {source}) does not fit this {type(model).__name__}, nothing was loaded. "
            f"{listed}. {hint}"
            "Use the network of the same architecture; timm's and torchvision's need batch norm, no proxy"
        )
    model.load_state_dict(loaded)
    return source


def _choose_names(model: ImageClassifier, state_dict: Mapping[str, torch.Tensor]) -> Tuple[str, Dict[str, str], str]:
    """Return whose names the state dict has, {name there: name here}, and the prefix of all of them.

    They are ours, without a prefix, if none has more in common.

    Raises:
        ValueError: several networks are in it, or its names are of none that is known.
    """
    candidates = {OURS: {name: name for name in model.state_dict()}, **foreign_names(model)}
    counts = {
        (source, prefix): sum(prefix + name in state_dict for name in names)
        for source, names in candidates.items()
        for prefix in ("", *_prefixes(names, state_dict))
    }
    (source, prefix), most = max(counts.items(), key=lambda item: item[1])
    if most < len(candidates[source]) / 2:
        raise ValueError(_of_nobody(model, state_dict, candidates))
    equal = sorted({other for (_, other), count in counts.items() if count == most})
    if prefix and len(equal) > 1:
        raise ValueError(
            f"the state dict has several such networks, in {', '.join(equal)}; save the state dict of one of them"
        )
    return source, candidates[source], prefix


def _prefixes(names: Mapping[str, str], state_dict: Mapping[str, torch.Tensor]) -> List[str]:
    """Return what stands before one of `names` in the state dict; looked for at one of them, as all have the same."""
    ends = [f".{name}" for name in list(names)[:1] + list(names)[-1:]]
    return sorted({name[: len(name) - len(end) + 1] for name in state_dict for end in ends if name.endswith(end)})


def _of_nobody(
    model: ImageClassifier, state_dict: Mapping[str, torch.Tensor], candidates: Mapping[str, Mapping[str, str]]
) -> str:
    hint = ""
    has = f"It has the names {_first(list(state_dict))}." if state_dict else "It is empty."
    if any("layer1.0.conv1.weight" in name for name in state_dict):
        hint = (
            "They look like a ResNet of torchvision or timm in v1 order, with norms after convolutions; here it is v2. "
        )
    wanted = "; ".join(f"{source} {_first(list(names)[:2])}" for source, names in candidates.items())
    return (
        f"the state dict is of another network than this {type(model).__name__}, nothing was loaded. {has} "
        f"{hint}Known are the names of {' and '.join(candidates)} ({wanted}); to convert "
        "another network as it is, see normact.convert_norm"
    )


def _is_classifier(name: str) -> bool:
    return name.startswith("classifier.")


def _first(names: List[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
