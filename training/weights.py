"""Putting saved weights into a model, with one readable error where they do not fit."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence

from torch import Tensor, nn

from configs.exit_codes import CHECKPOINT, ExplainedError

_PROBLEMS_SHOWN = 3
_NUMBERS_SHOWN = 4
_CHARACTERS_SHOWN = 60


class CheckpointError(ExplainedError, RuntimeError):
    """A checkpoint that cannot be written, read or used; the message names the cause and what to do."""

    exit_code = CHECKPOINT


def load_model_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict into `model`; every entry of either must have its equal in the other.

    The prefixes `module.` (distributed training) and `_orig_mod.` (torch.compile) are taken off the names on both
    sides, so weights move between plain, compiled and distributed models.

    Raises:
        CheckpointError: as `fitting`, before anything is changed.
    """
    model.load_state_dict(fitting(state, model.state_dict()), strict=True)


def fitting(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Return the tensors of `state` by the names in `like`, both without their prefixes.

    Raises:
        CheckpointError: they do not fit; it lists missing and unexpected entries, different shapes and types (real
            numbers take the type of those in `like`; other types must be the same), at most five each.
    """
    own: Dict[str, str] = {plain_name(name): name for name in like}
    given: Dict[str, Tensor] = {}
    for name, tensor in state.items():
        if plain_name(name) in given:
            raise CheckpointError(f"two saved entries are {plain_name(name)} once their prefixes are taken off")
        given[plain_name(name)] = tensor
    both = [(name, tensor, like[own[name]]) for name, tensor in given.items() if name in own]
    problems = _listed("missing", [name for name in own if name not in given])
    problems += _listed("unexpected", [name for name in given if name not in own])
    problems += _listed(
        "of another shape",
        [
            f"{name} (saved {tuple(saved.shape)}, here {tuple(wanted.shape)})"
            for name, saved, wanted in both
            if saved.shape != wanted.shape
        ],
    )
    problems += _listed(
        "of another type",
        [
            f"{name} (saved {saved.dtype}, here {wanted.dtype})"
            for name, saved, wanted in both
            if not is_convertible(saved, wanted)
        ],
    )
    if problems:
        raise CheckpointError(
            f"the saved weights do not fit this model: {'; '.join(problems)}. Use the configuration that wrote them "
            "(model.name, model.width, norm, number of classes)"
        )
    return {own[name]: tensor for name, tensor in given.items()}


def is_convertible(saved: Tensor, wanted: Tensor) -> bool:
    """Whether `saved` may take the type of `wanted`: both are of real numbers, or their types are the same."""
    return saved.dtype == wanted.dtype or (saved.is_floating_point() and wanted.is_floating_point())


def plain_name(name: str) -> str:
    """Return the name of a tensor without the prefixes of distributed training and torch.compile."""
    # torch.compile wraps any submodule, so its prefix may stand anywhere; distributed training wraps the whole model.
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):  # an average of a distributed model has it twice
        name = name[len("module.") :]
    return name


def shown(value: Any) -> str:
    """Return a value of a file in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).replace('torch.', '')} {tuple(value.shape)}"
    if isinstance(value, tuple) and len(value) <= _NUMBERS_SHOWN and {*map(type, value)} <= {int, float}:
        return repr(value)  # a setting, as betas
    if isinstance(value, (dict, list, tuple)):
        return f"a {'dictionary' if isinstance(value, dict) else 'list'} of {len(value)}"
    if value is None or isinstance(value, (bool, int, float, str)):
        text = repr(value)
        return text if len(text) <= _CHARACTERS_SHOWN else f"{text[:_CHARACTERS_SHOWN]}..."
    return f"a {type(value).__name__}"


def first_of(problems: Sequence[str]) -> str:
    """Return the first problems of a file as one text, and how many there are beside them."""
    more = f"; and {len(problems) - _PROBLEMS_SHOWN} more" if len(problems) > _PROBLEMS_SHOWN else ""
    return f"{'; '.join(problems[:_PROBLEMS_SHOWN])}{more}"


def _listed(what: str, names: List[str]) -> List[str]:
    if not names:
        return []
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return [f"{len(names)} {what}: {', '.join(names[:5])}{more}"]
