"""Watches torch's functions during a forward pass on the device, and gives some of them the device's behaviour."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Callable, Dict, Iterator, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from .._logging import logger
from ..errors import backend_error
from ..structures import tensors_in
from . import device_run
from .device_run import DeviceRun
from .finite import require_finite
from .graph_gradients import HOOKS_OF_TENSORS, differentiating_the_graph, ignored_hook
from .intercepted_arguments import ARGUMENT_HANDLERS
from .intercepted_half import VIA_FLOAT, has_half, via_float
from .intercepted_losses import LOSS_HANDLERS
from .intercepted_norms import NORM_HANDLERS
from .intercepted_recurrent import RECURRENT_HANDLERS
from .intercepted_values import require_no_values
from .marks import mark_on_device
from .operand_devices import (
    FACTORIES,
    devices_on_this_machine,
    is_computed_on_device,
    is_forced_to_device,
    on_this_machine,
    require_one_device,
)
from .refused_calls import follow, require_compilable
from .sequence_slot import sequence_slots_kept
from .substitutions import _OverwriteContextManager

Handler = Callable[[DeviceRun, Callable[..., Any], Tuple[Any, ...], Dict[str, Any]], Any]

HANDLERS: Dict[Any, Handler] = {**ARGUMENT_HANDLERS, **LOSS_HANDLERS, **NORM_HANDLERS, **RECURRENT_HANDLERS}
KNOWN_WHOLE = {F.one_hot}  # the device never sees what this machine computes it with
CONVOLUTIONS = {getattr(torch, f"conv{kind}{n}d") for kind in ("", "_transpose") for n in (1, 2, 3)}
DIFFERENTIATING = {torch.autograd.grad, torch.Tensor.backward}
_plain_getitem = torch.Tensor.__getitem__
_plain_setitem = torch.Tensor.__setitem__


@functools.wraps(_plain_getitem)
def _getitem(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """tensor[index], which torch 2.0 does not tell a mode of where the index is neither a tuple nor a list."""
    if has_torch_function_unary(tensor):
        return handle_torch_function(_getitem, (tensor,), tensor, index)
    return _plain_getitem(tensor, index)


@functools.wraps(_plain_setitem)
def _setitem(tensor: torch.Tensor, index: Any, value: Any) -> None:
    """tensor[index] = value, likewise."""
    if has_torch_function_unary(tensor):
        handle_torch_function(_setitem, (tensor,), tensor, index, value)
    else:
        _plain_setitem(tensor, index, value)


@contextlib.contextmanager
def _exchanged_indexing() -> Iterator[None]:
    """While entered, indexing passes through here; inside another mode it does already."""
    if "__getitem__" in vars(torch.Tensor):
        yield
        return
    with sequence_slots_kept():
        torch.Tensor.__getitem__ = _getitem  # type: ignore[method-assign, assignment]
        torch.Tensor.__setitem__ = _setitem  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            del torch.Tensor.__getitem__
            del torch.Tensor.__setitem__


class DeviceMode(TorchFunctionMode):
    """While entered, code runs "on the device": isRunningOnIpu() is True, and torch's functions pass through here."""

    def __init__(self, run: DeviceRun) -> None:
        super().__init__()
        self._run = run
        self._previous: Optional[DeviceRun] = None
        self._validates = True
        self._entered = contextlib.ExitStack()

    def __enter__(self) -> DeviceMode:
        self._previous, device_run.current = device_run.current, self._run
        # A distribution's checks of its arguments read values, which the device cannot do.
        self._validates = Distribution._validate_args
        Distribution.set_default_validate_args(False)
        self._entered.enter_context(_exchanged_indexing())
        self._entered.enter_context(differentiating_the_graph())
        self._entered.enter_context(_OverwriteContextManager())
        return super().__enter__()

    def __exit__(self, *details: Any) -> None:
        device_run.current = self._previous
        self._entered.close()
        Distribution.set_default_validate_args(self._validates)
        super().__exit__(*details)

    def __torch_function__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        require_no_values(func, args, kwargs)
        self._run.differentiates |= func in DIFFERENTIATING
        if func in HOOKS_OF_TENSORS:
            return ignored_hook()
        if self._run.is_tracing and self._run.operators is not None:
            require_one_device(func, args, kwargs, self._run.made)
            require_compilable(func, args, kwargs)
            self._run.operators.note_use_of(tensors_in([args, kwargs]))
        if func is torch.Tensor.__iter__:
            rows = args[0].unbind(0)
            self._note(func, rows, args, kwargs)
            return iter(rows)
        if func is torch.Tensor.to:
            args = on_this_machine(args)
        if "device" in kwargs:
            kwargs = devices_on_this_machine(kwargs)
        elif self._run.is_tracing and is_forced_to_device(func, args, kwargs):
            logger.warning("No device set in torch.%s(): forcing to IPU", func.__name__)
        handler = HANDLERS.get(func)
        call = func if handler is None else functools.partial(_handled, handler, self._run, func)
        if self._run.operators is not None and (handler is not None or func in KNOWN_WHOLE):
            call = functools.partial(self._run.operators.called_whole, call)
        note_cast = None if self._run.memory is None else self._run.memory.note_cast
        if func in VIA_FLOAT and has_half(args, kwargs):
            result = via_float(call, args, kwargs, note_cast)
        else:
            result = _called(call, args, kwargs, note_cast)
        if isinstance(result, (torch.Tensor, tuple, list)):
            results = tensors_in(result)
            self._note(func, results, args, kwargs)
            follow(func, args, results)
        return result

    def _note(self, func: Any, results: Sequence[torch.Tensor], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        """Follow which tensors are on the device, and in which block they are computed."""
        if not results or not is_computed_on_device(func, args, kwargs):
            return
        for result in results:
            mark_on_device(result)
        if self._run.is_tracing and func in FACTORIES:
            self._run.made.update(result.data_ptr() for result in results)
        if self._run.checks_finite:
            require_finite(results)
        if self._run.auto_scaling is not None:
            for result in results:
                if result.dtype == torch.float16 and result.requires_grad:
                    result.register_hook(self._run.auto_scaling.watch)
        names = [] if self._run.names is None else self._run.names.add(func.__name__, results)
        if self._run.is_tracing:
            self._run.convolutions += func in CONVOLUTIONS
            self._run.place_operation(names)
            self._run.overlap.note_operation(args, kwargs)
            if self._run.memory is not None:
                self._run.memory.note_operation(args, kwargs, results)
            for result in results:
                if 0 in result.shape:
                    raise backend_error(f"Zero-sized tensors are unsupported (Got shape {list(result.shape)}).")


def _called(
    call: Callable[..., Any],
    args: Tuple[Any, ...],
    kwargs: Dict[str, Any],
    note_cast: Optional[Callable[[torch.Tensor, torch.Tensor], None]],
) -> Any:
    """Call; in float where torch's CPU has no half precision form (older versions lack many)."""
    try:
        return call(*args, **kwargs)
    except RuntimeError as error:
        if "not implemented for 'Half'" not in str(error):
            raise
    return via_float(call, args, kwargs, note_cast)


def _handled(handler: Handler, run: DeviceRun, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return handler(run, func, args, kwargs)
