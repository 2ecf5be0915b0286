"""Gradients are the graph's: the device differentiates what forward() computes.

What a program adds to torch's own backward pass never runs there: the backward() of a torch.autograd.Function, and
hooks on gradients. Here neither does, with a warning when the model is compiled.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from typing import Any, Iterator, List, Tuple

import torch
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.hooks import RemovableHandle

from .._logging import logger
from . import device_run

# The second is what a program reaches that took the first's method before it was exchanged: `swish = Swish.apply`.
_OWNERS: List[Any] = [torch.autograd.Function, torch.autograd.function._SingleLevelFunction]
_own_apply = torch.autograd.Function.__dict__["apply"]
_OF_THE_EMULATOR = __name__.partition(".")[0]
HOOKS_OF_TENSORS = {
    getattr(torch.Tensor, name)
    for name in ("register_hook", "register_post_accumulate_grad_hook")
    if hasattr(torch.Tensor, name)
}


class _Context:
    """The ctx of a forward() whose backward() nobody calls."""

    def __init__(self, inputs: Tuple[Any, ...]) -> None:
        self.needs_input_grad = tuple(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs)
        self.saved_tensors: Tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep tensors, as torch's own ctx does."""
        self.saved_tensors = tensors

    save_for_forward = save_for_backward

    def mark_dirty(self, *tensors: Any) -> None:
        """Only backward() would want to know."""

    mark_non_differentiable = mark_dirty

    def set_materialize_grads(self, value: bool) -> None:
        """Only backward() would want to know."""


def _apply_forward(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """Function.apply() on the device: forward(), whose operations are differentiated one by one."""
    if cls.__module__.partition(".")[0] == _OF_THE_EMULATOR:
        return _own_apply.__get__(None, cls)(*args, **kwargs)  # its rule for vmap is all that it has
    if cls is CheckpointFunction:  # what is computed again is not for torch to decide
        function, _, *rest = args
        return function(*rest)
    run = device_run.current
    if run is not None and run.is_tracing and run.is_training:
        logger.warning(
            "%s.backward() never runs on an IPU, nor in the emulator: they differentiate what the forward() of a "
            "torch.autograd.Function computes",
            cls.__name__,
        )
    if cls.setup_context is not torch.autograd.Function.setup_context:
        return cls.forward(*args, **kwargs)
    return cls.forward(_Context(args), *args, **kwargs)


@contextlib.contextmanager
def differentiating_the_graph() -> Iterator[None]:
    """While entered, a torch.autograd.Function is its forward() alone."""
    before = [(owner, owner.__dict__.get("apply")) for owner in _OWNERS]
    for owner in _OWNERS:
        owner.apply = classmethod(_apply_forward)
    try:
        yield
    finally:
        for owner, apply in before:
            if apply is None:
                del owner.apply
            else:
                owner.apply = apply


def ignored_hook() -> RemovableHandle:
    """Return the handle of a tensor's hook that will not be called."""
    run = device_run.current
    if run is not None and run.is_tracing:
        logger.warning("A hook on a tensor's gradient never runs on an IPU, nor in the emulator")
    return RemovableHandle(OrderedDict())


def warn_of_hooks(model: torch.nn.Module) -> None:
    """Warn of the hooks on gradients that the program put on a model's modules and parameters."""
    hooked = [f"module {name or 'itself'}" for name, module in model.named_modules() if any(_hooks(module))]
    hooked += [f"parameter {name}" for name, tensor in model.named_parameters() if _has_hooks(tensor)]
    if hooked:
        logger.warning("Hooks on gradients never run on an IPU, nor in the emulator: %s", ", ".join(hooked))


def _hooks(module: torch.nn.Module) -> List[Any]:
    return [module.__dict__.get(name) for name in ("_backward_hooks", "_backward_pre_hooks")]


def _has_hooks(tensor: torch.Tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return bool(tensor._backward_hooks) or bool(getattr(tensor, "_post_accumulate_grad_hooks", None))


@contextlib.contextmanager
def without_backward_hooks(modules: List[torch.nn.Module]) -> Iterator[None]:
    """While entered, these modules have no hooks on gradients."""
    hooked = [(module, name) for module in modules for name in ("_backward_hooks", "_backward_pre_hooks")]
    kept = [(module, name, module.__dict__[name]) for module, name in hooked if module.__dict__.get(name)]
    for module, name, _ in kept:
        module.__dict__[name] = OrderedDict()
    try:
        yield
    finally:
        for module, name, hooks in kept:
            module.__dict__[name] = hooks
