"""Start from weights that were trained before: of this package, of timm or of torchvision."""

from __future__ import annotations

from typing import Dict, List, Mapping, Tuple

import torch

from models.foreign_names import foreign_names
from models.image_classifier import ImageClassifier

OURS = "this package"
_SHOWN = 5


def load_pretrained(
    model: ImageClassifier, state_dict: Mapping[str, torch.Tensor], *, reset_classifier: bool = False
) -> str:
    """Copy a state dict into a network, all of it or nothing.

    Whose names the state dict has is found by counting; see models.foreign_names for networks that are the same.

    Args:
        model: a network of this package.
        state_dict: of the same network here, or of the timm or torchvision network of the same architecture (which
            needs batch norm without proxy norm here). The 1x1 convolution that classifies in timm's ResNets becomes a
            linear layer.
        reset_classifier: leave the model's own classifier, randomly initialized, whatever the state dict has.

    Returns:
        whose names the state dict has: OURS, "timm" or "torchvision".

    dtype: values are converted to the type of the model's own parameters.

    Raises:
        ValueError: tensors are missing, left over or of another shape; they are listed by their names in the state
            dict.
    """
    own = model.state_dict()
    source, names = _choose_names(model, state_dict)
    is_reset = {name for name in names if reset_classifier and _is_classifier(names[name])}
    # A count of updates, which torch's batch norm keeps and hardly ever reads; ours has none.
    counters = {f"{name[: -len('.running_mean')]}.num_batches_tracked" for name in names}
    loaded: Dict[str, torch.Tensor] = {name: own[name] for name in own if reset_classifier and _is_classifier(name)}
    shapes: List[str] = []
    for foreign, name in names.items():
        if foreign not in state_dict or foreign in is_reset:
            continue
        tensor = state_dict[foreign]
        if foreign == "head.fc.weight" and tensor.dim() == 4:
            tensor = tensor.flatten(1)
        if tensor.shape != own[name].shape:
            shapes.append(f"{foreign} {tuple(tensor.shape)}, here {name} {tuple(own[name].shape)}")
        loaded[name] = tensor
    differences = {
        "missing": [name for name in names if name not in state_dict and name not in is_reset],
        "unexpected": [name for name in state_dict if name not in names and name not in counters],
        "of another shape": shapes,
    }
    if any(differences.values()):
        listed = "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in differences.items() if names)
        hint = ""
        if shapes and all("here classifier." in shape for shape in shapes):
            hint = "Only the number of classes differs: to train another, set reset_classifier, which draws it anew. "
        raise ValueError(
            f"the state dict (names of {source}) does not fit this {type(model).__name__}, nothing was loaded. "
            f"{listed}. {hint}"
            "Use the network of the same architecture; timm's and torchvision's need batch norm, no proxy"
        )
    model.load_state_dict(loaded)
    return source


def _choose_names(model: ImageClassifier, state_dict: Mapping[str, torch.Tensor]) -> Tuple[str, Dict[str, str]]:
    """Whose names the state dict has, and {name there: name here}. Ours where none has more in common."""
    candidates = {OURS: {name: name for name in model.state_dict()}, **foreign_names(model)}
    source = max(candidates, key=lambda key: sum(name in state_dict for name in candidates[key]))
    return source, candidates[source]


def _is_classifier(name: str) -> bool:
    return name.startswith("classifier.")


def _first(names: List[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
