"""Arguments that the device takes otherwise than torch, or not at all, without an error.

PopTorch's handlers leave some arguments unread, and compute some results by other formulas than torch. What a model
gets on the device it gets here too; where an argument is lost, compiling logs a warning, which PopTorch does not.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Tuple

import torch
import torch.nn.functional as F

from .._logging import logger
from .device_run import DeviceRun

Arguments = Tuple[Any, ...]
Keywords = Dict[str, Any]
Call = Callable[..., Any]


def _warn(run: DeviceRun, call: str, instead: str) -> None:
    if run.is_tracing:
        logger.warning("%s: PopTorch ignores this argument: %s", call, instead)


def _named(names: str, args: Arguments, kwargs: Keywords) -> Keywords:
    return {**dict(zip(names.split(), args)), **kwargs}


def _gelu(run: DeviceRun, func: Call, args: Arguments, kwargs: Keywords) -> Any:
    """Approximate by tanh, which is the only form that the device has."""
    return func(args[0] if args else kwargs["input"], approximate="tanh")


def _average_pool(run: DeviceRun, func: Call, args: Arguments, kwargs: Keywords) -> Any:
    names = "input kernel_size stride padding ceil_mode count_include_pad divisor_override"
    given = _named(names, args, kwargs)
    if given.pop("divisor_override", None) is not None:
        _warn(run, "divisor_override of an average pool", "it divides by the size of the kernel")
    return func(**given)


def _index_put(run: DeviceRun, func: Call, args: Arguments, kwargs: Keywords) -> Any:
    given = _named("input indices values accumulate", args, kwargs)
    if given.get("accumulate", False):
        _warn(run, "index_put(accumulate=True)", "values replace what was there; use scatter_add")
    return func(given["input"], given["indices"], given["values"])


def _divide(run: DeviceRun, func: Call, args: Arguments, kwargs: Keywords) -> Any:
    """Divide numbers exactly, and integers towards zero, whatever the mode."""
    if kwargs.get("rounding_mode") is None:
        return func(*args, **kwargs)
    mode = kwargs["rounding_mode"]
    operands = [value for value in (*args, *kwargs.values()) if isinstance(value, (torch.Tensor, int, float))]
    if all(isinstance(value, int) or _is_integral(value) for value in operands):
        if mode == "floor":
            _warn(run, 'div(rounding_mode="floor") of integers', "they are divided towards zero")
        return func(*args, **{**kwargs, "rounding_mode": "trunc"})
    _warn(run, f'div(rounding_mode="{mode}")', "the quotient is not rounded; use floor_divide() or trunc()")
    return func(*args, **{**kwargs, "rounding_mode": None})


def _floor_divide(run: DeviceRun, func: Call, args: Arguments, kwargs: Keywords) -> Any:
    """Round the quotient of numbers down, by two operators with gradients (0), which torch's own has not."""
    values = (*args, *kwargs.values())
    if not any(isinstance(value, torch.Tensor) and value.requires_grad for value in values):
        return func(*args, **kwargs)
    dividend, divisor = values if func is not torch.Tensor.__rfloordiv__ else values[::-1]
    return torch.floor(torch.div(dividend, divisor))


def _is_integral(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_floating_point()


def _variance(run: DeviceRun, func: Call, args: Arguments, kwargs: Keywords) -> Any:
    correction = kwargs.get("correction")
    if correction is not None and correction not in (0, 1):
        _warn(run, f"{func.__name__}(correction={correction})", "anything but 0 is 1")
        kwargs = {**kwargs, "correction": 1}
    return func(*args, **kwargs)


def _bincount(run: DeviceRun, func: Call, args: Arguments, kwargs: Keywords) -> Any:
    """Count into minlength bins; a larger value goes where the number of values, less one, would go, if anywhere."""
    given = _named("input weights minlength", args, kwargs)
    values, bins = given["input"], given["minlength"]
    values = torch.where(values < bins, values, torch.full_like(values, len(values) - 1)).clamp(max=bins)
    return torch.bincount(values, given.get("weights"), bins + 1)[:bins]


def _norm_of_order_0(run: DeviceRun, func: Call, args: Arguments, kwargs: Keywords) -> Any:
    """Compute sum(|x|^p)^(1/p) for p = 0 too: infinity, for more than one number."""
    names = "x ord dim keepdim" if func is torch.linalg.vector_norm else "input p dim keepdim"
    given = _named(names, args, kwargs)
    order = given.get(names.split()[1], 2)
    if isinstance(order, (int, float)) and order == 0:
        dim = given.get("dim")
        x, keepdim = given[names.split()[0]], bool(given.get("keepdim", False))
        powers = x.abs().pow(0)
        total = powers.sum() if dim is None else powers.sum(dim, keepdim)
        return total.pow(float("inf"))
    return func(*args, **kwargs)


def _handlers() -> Dict[Any, Callable[..., Any]]:
    spaces = (torch, torch.Tensor, torch._C._nn, F)
    named: Dict[str, Callable[..., Any]] = {
        "gelu": _gelu,
        "avg_pool2d": _average_pool,
        "avg_pool3d": _average_pool,
        "index_put": _index_put,
        "index_put_": _index_put,
        "div": _divide,
        "div_": _divide,
        "divide": _divide,
        "divide_": _divide,
        "floor_divide": _floor_divide,
        "__floordiv__": _floor_divide,
        "__rfloordiv__": _floor_divide,
        "var": _variance,
        "std": _variance,
        "var_mean": _variance,
        "std_mean": _variance,
        "bincount": _bincount,
        "norm": _norm_of_order_0,
    }
    handlers = {
        getattr(space, name): handler for name, handler in named.items() for space in spaces if hasattr(space, name)
    }
    handlers[torch.linalg.vector_norm] = _norm_of_order_0
    return handlers


ARGUMENT_HANDLERS = _handlers()
