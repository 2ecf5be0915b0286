"""Loops and conditions that the device decides."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator, List

import torch

from .._device import device_run
from ..errors import backend_error
from .argument_checks import require_tensors

Body = Callable[..., Any]


def _refuse_in_training(name: str) -> None:
    if device_run.current is not None and device_run.current.is_training:
        raise backend_error(f"poptorch.{name}() is only supported in inference.")


def for_loop(count: int, body: Body, inputs: List[torch.Tensor]) -> List[torch.Tensor]:
    """Apply `body` count times, each time to its last results, beginning with the inputs.

    Outside the device it runs once, whatever the count.

    Raises:
        Error: in training, in another loop, or when the body changes a buffer or parameter, or returns another number
            of tensors than it takes.
    """
    _refuse_in_training("for_loop")
    require_tensors(inputs, "poptorch.for_loop expects input tensors (inputs) to be a list of tensors.")
    state = [tensor.clone() for tensor in inputs]
    run = device_run.current
    with contextlib.nullcontext() if run is None else _in_loop(run):
        for _ in range(1 if run is None else count):
            state = _as_list(body(*state))
            if len(state) != len(inputs):
                raise backend_error(f"poptorch.for_loop: the body takes {len(inputs)} tensors and returns {len(state)}")
    return state


@contextlib.contextmanager
def _in_loop(run: device_run.DeviceRun) -> Iterator[None]:
    """While entered, the loop's body runs: a graph of its own, which cannot change what belongs to the whole model."""
    if run.is_in_loop:
        raise backend_error(
            "[Internal] new poptorch::start_for_loop encountered before previous poptorch::end_for_loop "
            "(a for_loop in the body of another)"
        )
    run.is_in_loop = True
    versions = [tensor._version for tensor in run.variables]
    try:
        yield
    finally:
        run.is_in_loop = False
    if versions != [tensor._version for tensor in run.variables]:
        raise backend_error(
            "poptorch.for_loop: the body changes a buffer or parameter in place; give it to the loop as an input, and "
            "copy the loop's result to it afterwards"
        )


def cond(
    condition: torch.Tensor,
    then_body: Body,
    then_inps: List[torch.Tensor],
    else_body: Body,
    else_inps: List[torch.Tensor],
) -> List[torch.Tensor]:
    """Run one of two functions, chosen by a tensor's value on the device. Both are compiled.

    Raises:
        Error: in training, or when the functions return different numbers of tensors, or tensors without dimensions.
    """
    _refuse_in_training("cond")
    for inputs in (then_inps, else_inps):
        require_tensors(inputs, "poptorch.cond expects then_inps and else_inps tensors to be a list of tensors.")
    with torch._C.DisableTorchFunction():  # the device, not the host, reads the value
        is_true = bool(condition)
    run = device_run.current
    if run is None:
        return _as_list(then_body(*then_inps) if is_true else else_body(*else_inps))
    if not run.is_tracing:
        return _outcome(then_body, then_inps) if is_true else _outcome(else_body, else_inps)
    of_then, of_else = _outcome(then_body, then_inps), _outcome(else_body, else_inps)
    _check_outcomes(of_then, of_else)
    return of_then if is_true else of_else


def _outcome(body: Body, inputs: List[torch.Tensor]) -> List[torch.Tensor]:
    """Call a branch, which gets copies of its inputs."""
    return _as_list(body(*(tensor.clone() for tensor in inputs)))


def _check_outcomes(of_then: List[torch.Tensor], of_else: List[torch.Tensor]) -> None:
    if len(of_then) != len(of_else):
        raise backend_error(
            f"poptorch.cond: then_body returns {len(of_then)} tensors and else_body {len(of_else)}; both branches have "
            "to return the same number of outputs"
        )
    if any(tensor.dim() == 0 for tensor in of_else):
        raise backend_error(
            "`else` branch output has an empty shape, so adding a reshape op to the `then` branch to achieve shapes "
            "identity is not possible!"
        )


def _as_list(outputs: Any) -> List[torch.Tensor]:
    return list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
