"""Strict mode: what the device's compiler has no form of is refused, as PopTorch refuses it."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Callable, Iterator, List, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import backend_error
from ..structures import tensors_in
from .marks import is_variable, mark_variable
from .operator_table import REFUSED_UPSAMPLING, is_supported, plain_name

VARIABLE = "POPTORCH_EMULATOR_STRICT"


def is_strict(options: Any) -> bool:
    """Whether operators are checked: as the option says, else the environment variable; by default yes."""
    if options._emulates_unsupported:
        return False
    return os.environ.get(VARIABLE, "1") != "0"


class OperatorWatch(TorchDispatchMode):
    """Notes which operators a forward pass needs on the device.

    What is computed from constants alone is computed while compiling, on the host, and so is of no interest here: only
    operators of inputs, weights and random numbers are, and those of their results.
    """

    def __init__(self) -> None:
        super().__init__()
        self._unsupported: List[str] = []
        self._is_paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._is_paused:
            return result
        if _any_variable((args, kwargs or {})) or torch.Tag.nondeterministic_seeded in func.tags:
            _mark_all(result)
            self._note(func._schema.name)
        return result

    def _note(self, qualified_name: str) -> None:
        name = plain_name(qualified_name)
        if name in REFUSED_UPSAMPLING:
            raise backend_error(f"Unsupported upsample mode aten::{name}: currently only 'nearest' is supported")
        if qualified_name.startswith("aten::") and not is_supported(name) and f"aten::{name}" not in self._unsupported:
            self._unsupported.append(f"aten::{name}")

    def called_whole(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function that the device knows as one operator, whatever this machine computes it with."""
        with self.paused():
            result = call(*args, **kwargs)
        if _any_variable((args, kwargs)):
            _mark_all(result)
        return result

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """While entered, operators are not noted."""
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def check(self) -> None:
        """Refuse what was noted.

        Raises:
            Error: operators that PopTorch cannot compile.
        """
        if self._unsupported:
            raise backend_error(
                f"Unsupported ops found in compiled model: [{', '.join(self._unsupported)}]. Not all operations are "
                "supported yet by Graphcore's PyTorch compiler. (The emulator can compute them all the same: "
                f"{VARIABLE}=0, or Options.emulateUnsupportedOperators(); an IPU cannot.)"
            )


def _any_variable(value: Any) -> bool:
    return any(is_variable(tensor) for tensor in tensors_in(value))


def _mark_all(result: Any) -> None:
    for tensor in tensors_in(result):
        mark_variable(tensor)
