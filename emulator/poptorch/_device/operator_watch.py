"""Strict mode: what the device's compiler has no form of is refused, as PopTorch refuses it."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import backend_error
from ..structures import tensors_in
from .marks import is_absent, is_variable, mark_variable
from .operator_arguments import error_of_arguments
from .operator_table import is_supported, plain_name

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

    def __init__(self, is_training: bool) -> None:
        super().__init__()
        self._is_training = is_training
        self._unsupported: List[str] = []
        self._uses_absent = False
        self._is_paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*_with_tensors_for_numbers(func._schema, args), **(kwargs or {}))
        if self._is_paused:
            return result
        if _any_variable((args, kwargs or {})) or torch.Tag.nondeterministic_seeded in func.tags:
            _mark_all(result)
            self._note(func._schema, args, kwargs or {})
        return result

    def _note(self, schema: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        qualified_name = schema.name
        name = plain_name(qualified_name)
        if name == "index_put" and True in args[3:]:
            # Accumulation that a program asks for is gone by now: this is the gradient of x[index], for which torch
            # calls an inner operator, except where a mode like this one is active.
            name = "_index_put_impl_"
        error = error_of_arguments(name, schema, args, kwargs, self._is_training)
        if error is not None:
            raise error
        if qualified_name.startswith("aten::") and not is_supported(name) and f"aten::{name}" not in self._unsupported:
            self._unsupported.append(f"aten::{name}")

    def called_whole(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function that the device knows as one operator, whatever this machine computes it with."""
        with self.paused():
            result = call(*args, **kwargs)
        if _any_variable((args, kwargs)):
            _mark_all(result)
        return result

    def note_use_of(self, tensors: Iterable[torch.Tensor]) -> None:
        """Note that the program uses these results, which the device may not compute."""
        self._uses_absent = self._uses_absent or any(is_absent(tensor) for tensor in tensors)

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
            Error: operators that PopTorch cannot compile, or results that it does not compute.
        """
        if self._unsupported:
            raise backend_error(
                f"Unsupported ops found in compiled model: [{', '.join(self._unsupported)}]. Not all operations are "
                "supported yet by Graphcore's PyTorch compiler. (The emulator can compute them all the same: "
                f"{VARIABLE}=0, or Options.emulateUnsupportedOperators(); an IPU cannot.)"
            )
        if self._uses_absent:
            raise backend_error(
                "The canonicalised JIT node has fewer outputs than the dispatch function. This is only an issue "
                "because these outputs are used. (The device's maximum pools do not return indices.)"
            )


def _with_tensors_for_numbers(schema: Any, args: Tuple[Any, ...]) -> Tuple[Any, ...]:
    """Return the arguments with tensors where the schema asks for them: torch 2.0 hands over numbers (for `x | 4`)."""
    return tuple(
        torch.tensor(value)
        if isinstance(value, (bool, int, float)) and argument.type.isSubtypeOf(torch._C.TensorType.get())
        else value
        for value, argument in zip(args, schema.arguments)
    )


def _any_variable(value: Any) -> bool:
    return any(is_variable(tensor) for tensor in tensors_in(value))


def _mark_all(result: Any) -> None:
    for tensor in tensors_in(result):
        mark_variable(tensor)
