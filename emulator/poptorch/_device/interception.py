"""Watches torch's functions during a forward pass on the device, and gives some of them the device's behaviour."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Callable, Dict, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch.distributions import Distribution
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary

from .._logging import logger
from ..errors import backend_error
from . import device_run
from .device_run import DeviceRun
from .finite import require_finite
from .graph_gradients import HOOKS_OF_TENSORS, differentiating_the_graph, ignored_hook
from .intercepted_half import VIA_FLOAT, has_half, via_float
from .intercepted_losses import LOSS_HANDLERS
from .intercepted_norms import NORM_HANDLERS
from .intercepted_recurrent import RECURRENT_HANDLERS
from .intercepted_values import require_no_values
from .marks import is_on_device, mark_on_device

Handler = Callable[[DeviceRun, Callable[..., Any], Tuple[Any, ...], Dict[str, Any]], Any]

FACTORIES = {
    getattr(torch, name)
    for name in (
        "arange empty full full_like linspace logspace ones rand randint randn randperm range tensor zeros zeros_like"
    ).split()
}
HANDLERS: Dict[Any, Handler] = {**LOSS_HANDLERS, **NORM_HANDLERS, **RECURRENT_HANDLERS}
KNOWN_WHOLE = {F.one_hot}  # the device never sees what this machine computes it with
CONVOLUTIONS = {getattr(torch, f"conv{kind}{n}d") for kind in ("", "_transpose") for n in (1, 2, 3)}
_plain_getitem = torch.Tensor.__getitem__


@functools.wraps(_plain_getitem)
def _getitem(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    """tensor[index], which torch 2.0 does not tell a mode of where the index is neither a tuple nor a list."""
    if has_torch_function_unary(tensor):
        return handle_torch_function(_getitem, (tensor,), tensor, index)
    return _plain_getitem(tensor, index)


class DeviceMode(TorchFunctionMode):
    """While entered, code runs "on the device": isRunningOnIpu() is True, and torch's functions pass through here."""

    def __init__(self, run: DeviceRun) -> None:
        super().__init__()
        self._run = run
        self._previous: Optional[DeviceRun] = None
        self._validates = True
        self._changes_getitem = True
        self._gradients = contextlib.ExitStack()

    def __enter__(self) -> DeviceMode:
        self._previous, device_run.current = device_run.current, self._run
        # A distribution's checks of its arguments read values, which the device cannot do.
        self._validates = Distribution._validate_args
        Distribution.set_default_validate_args(False)
        self._changes_getitem = "__getitem__" not in vars(torch.Tensor)
        if self._changes_getitem:
            torch.Tensor.__getitem__ = _getitem  # type: ignore[method-assign, assignment]
        self._gradients.enter_context(differentiating_the_graph())
        return super().__enter__()

    def __exit__(self, *details: Any) -> None:
        device_run.current = self._previous
        self._gradients.close()
        Distribution.set_default_validate_args(self._validates)
        if self._changes_getitem:
            del torch.Tensor.__getitem__
        super().__exit__(*details)

    def __torch_function__(
        self, func: Any, types: Any, args: Tuple[Any, ...] = (), kwargs: Optional[Dict[str, Any]] = None
    ) -> Any:
        kwargs = kwargs or {}
        require_no_values(func, args, kwargs)
        if func in HOOKS_OF_TENSORS:
            return ignored_hook()
        if func is torch.Tensor.to:
            args = _on_this_machine(args)
        if "device" in kwargs:
            kwargs = _devices_on_this_machine(kwargs)
        elif self._run.is_tracing and (func in FACTORIES or (func is torch.normal and not _any_tensor(args, kwargs))):
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
        if isinstance(result, torch.Tensor):
            self._note(func, (result,), args, kwargs)
        elif isinstance(result, (tuple, list)):
            self._note(func, [element for element in result if isinstance(element, torch.Tensor)], args, kwargs)
        return result

    def _note(self, func: Any, results: Sequence[torch.Tensor], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> None:
        """Follow which tensors are on the device, and in which block they are computed."""
        if not results or not _is_computed_on_device(args, kwargs):
            return
        for result in results:
            mark_on_device(result)
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


def _is_computed_on_device(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    """Constants of the host stay there; what has a device operand, or no tensor operand at all, is on the device."""
    any_tensor = False
    for arg in (*args, *kwargs.values()):
        for element in arg if isinstance(arg, (tuple, list)) else (arg,):
            if isinstance(element, torch.Tensor):
                if is_on_device(element):
                    return True
                any_tensor = True
    return not any_tensor


def _any_tensor(args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> bool:
    return any(isinstance(value, torch.Tensor) for value in (*args, *kwargs.values()))


def _on_this_machine(args: Sequence[Any]) -> Tuple[Any, ...]:
    """Positional "ipu" devices (tensor.to("ipu")) become the CPU that emulates them."""
    return tuple(torch.device("cpu") if _names_ipu(arg) else arg for arg in args)


def _devices_on_this_machine(kwargs: Dict[str, Any]) -> Dict[str, Any]:
    if _names_ipu(kwargs.get("device")):
        return {**kwargs, "device": torch.device("cpu")}
    return kwargs


def _names_ipu(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "ipu"
    return isinstance(value, str) and (value == "ipu" or value.startswith("ipu:"))
