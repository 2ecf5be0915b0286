"""Annotations that place parts of a network on stages and IPUs; without effect outside compilation."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any, Callable, Optional, Union

import torch

from .._device import device_run
from .._device.device_run import DeviceRun
from ..errors import createPoptorchError


def _tracing_run() -> Optional[DeviceRun]:
    run = device_run.current
    return run if run is not None and run.is_tracing else None


def _begin(user_id: Optional[str], ipu_id: Optional[int]) -> None:
    run = _tracing_run()
    if run is not None:
        run.begin_block(user_id, ipu_id)


class Block(torch.nn.Module):
    """Context whose operations form one block; operations after it need another block.

    Args:
        user_id: the block's name; None: numbered.
        ipu_id: the IPU it runs on.
    """

    @staticmethod
    def useAutoId() -> None:
        """Restart the numbers of unnamed blocks at 0; call it at the start of forward."""
        run = _tracing_run()
        if run is not None and run.stages is not None:
            run.stages.resetAutoId()

    @staticmethod
    def start(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        """Begin a block that lasts until the next one begins."""
        _begin(user_id, ipu_id)

    def __init__(self, user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        super().__init__()
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __enter__(self) -> None:
        _begin(self._user_id, self._ipu_id)

    def __exit__(self, type: Any, value: Any, traceback: Any) -> None:
        run = _tracing_run()
        if run is not None:
            run.end_block()


class LegacyBeginBlockFn(torch.nn.Module):
    """A function that begins a block when it is called."""

    def __init__(
        self, layer_to_call: Callable[..., Any], user_id: Optional[str] = None, ipu_id: Optional[int] = None
    ) -> None:
        super().__init__()
        self._layer_to_call = layer_to_call
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __call__(self, *input: Any, **kwargs: Any) -> Any:
        _begin(self._user_id, self._ipu_id)
        return self._layer_to_call(*input, **kwargs)


class _BlockHook:
    """Forward pre-hook that begins a block."""

    def __init__(self, user_id: Optional[str], ipu_id: Optional[int]) -> None:
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __call__(self, module: torch.nn.Module, input: Any) -> None:
        run = _tracing_run()
        if run is None or run.stages is None:
            return
        if self._user_id is None:  # the name found first is kept, so that compiling again finds the same block
            self._user_id = run.stages.nextAutoId()
        run.begin_block(self._user_id, self._ipu_id)

    def __repr__(self) -> str:
        return f"BeginBlock(user_id={self._user_id}, ipu_id={self._ipu_id})"


def BeginBlock(
    layer_to_call: Union[torch.nn.Module, Callable[..., Any]],
    user_id: Optional[str] = None,
    ipu_id: Optional[int] = None,
) -> Any:
    """Begin a block where the module (or function) is called; it lasts until the next one begins.

    Returns the module itself, unchanged but for a hook; a function comes back wrapped.

    Raises:
        Error: neither module nor function, or the module has a block already.
    """
    if not isinstance(layer_to_call, torch.nn.Module):
        if callable(layer_to_call):
            return LegacyBeginBlockFn(layer_to_call, user_id, ipu_id)
        raise createPoptorchError(f"module is not an instance of torch.nn.Module or function: {type(layer_to_call)}")
    if any(isinstance(hook, _BlockHook) for hook in layer_to_call._forward_pre_hooks.values()):
        raise createPoptorchError("module has already been assigned to a block.")
    layer_to_call.register_forward_pre_hook(_BlockHook(user_id, ipu_id))
    return layer_to_call


def removeBlocks(module: torch.nn.Module) -> None:
    """Undo BeginBlock on a module and all modules in it."""
    if not isinstance(module, torch.nn.Module):
        raise AssertionError(f"Expected a torch.nn.Module, got {type(module)}")
    for part in module.modules():
        kept = [(key, hook) for key, hook in part._forward_pre_hooks.items() if not isinstance(hook, _BlockHook)]
        part._forward_pre_hooks = OrderedDict(kept)


def BlockFunction(
    user_id: Optional[str] = None, ipu_id: Optional[int] = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function so that its operations form one block."""

    def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def in_block(*args: Any, **kwargs: Any) -> Any:
            with Block(user_id, ipu_id):
                return function(*args, **kwargs)

        return in_block

    return decorator
