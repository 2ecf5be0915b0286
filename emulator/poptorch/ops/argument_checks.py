"""The checks that PopTorch makes of what its operations are given."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import createPoptorchError


def require_tensor(value: Any, name: str) -> None:
    """Refuse what is no tensor.

    Raises:
        Error: with the argument's name.
    """
    if not isinstance(value, torch.Tensor):
        raise createPoptorchError(f"{name} must be a torch.Tensor. {type(value)} is not supported.")


def require_int(value: Any, name: str) -> None:
    """Refuse what is no integer.

    Raises:
        Error: with the argument's name.
    """
    if not isinstance(value, int):
        raise createPoptorchError(f"{name} must be an integer, got {value!r}")


def require_tensors(value: Any, rule: str) -> None:
    """Refuse what is no list of tensors.

    Raises:
        ValueError: the rule, and where it is broken.
    """
    if not isinstance(value, list):
        raise ValueError(f"{rule} (Object is not list)")
    for index, element in enumerate(value):
        if not isinstance(element, torch.Tensor):
            raise ValueError(f"{rule} (Object contained in list at index {index} is not torch.tensor)")
