"""The operators' gradients for a wheel's kernels, in Python: the same bits as csrc/autograd.cpp's.

Torch's stable interface, which those kernels speak, knows no nodes of the autograd graph. Their price is the
interpreter in each backward.
"""

from __future__ import annotations

from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor
from torch._C import _after_autograd_keyset, _are_functorch_transforms_active, _AutoDispatchBelowAutograd
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

# What torch.func itself makes of a Function at each of its levels, which the dispatcher has taken apart before this.
from torch.autograd.function import _SingleLevelFunction

_libraries: List[Any] = []  # registrations live as long as their library object


def register_gradients() -> None:
    """Make this file's functions the operators' gradients on every device. Once per process."""
    library = torch.library.Library("normact", "IMPL")
    library.impl("norm_act", _norm_act, "Autograd", with_keyset=True)
    library.impl("proxy_statistics", _proxy_statistics, "Autograd", with_keyset=True)
    _libraries.append(library)
    for name in ("norm_act_again", "norm_act_backward", "proxy_statistics_backward"):
        torch.library.register_autograd(f"normact::{name}", _refusal(name))


def _norm_act(keyset: Any, *arguments: Any) -> Any:
    if _is_recorded(arguments[:5], "norm_act"):
        return _recorded(_NormAct, keyset, arguments)
    return _below(torch.ops.normact.norm_act.default, keyset, arguments)


def _proxy_statistics(keyset: Any, *arguments: Any) -> Any:
    if _is_recorded(arguments[1:5], "proxy_statistics"):
        return _recorded(_ProxyStatistics, keyset, arguments)
    return _below(torch.ops.normact.proxy_statistics.default, keyset, arguments)


class _NormAct(_SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, keyset: Any, *arguments: Any) -> Any:
        out, statistics = _below(torch.ops.normact.norm_act.default, keyset, arguments)
        ctx.save_for_backward(arguments[0], statistics, *arguments[1:5])
        ctx.settings = arguments[5:]
        ctx.mark_non_differentiable(statistics)
        return out, statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
        x, statistics, *parameters = ctx.saved_tensors
        *settings, eps = ctx.settings
        if torch.is_grad_enabled():  # create_graph: the backward is differentiated itself
            operator = torch.ops.normact.norm_act_differentiable_backward
            dx, rows = operator(grad, x, *parameters, *settings, eps)
        else:
            dx, rows = torch.ops.normact.norm_act_backward(grad, x, statistics, *parameters, *settings)
        needed = ctx.needs_input_grad[1:6]
        return (None, dx if needed[0] else None, *_wanted(rows, needed[1:]), None, None, None, None)


class _ProxyStatistics(_SingleLevelFunction):
    @staticmethod
    def forward(ctx: Any, keyset: Any, *arguments: Any) -> Any:
        mean, inverse_std, slopes = _below(torch.ops.normact.proxy_statistics.default, keyset, arguments)
        ctx.save_for_backward(slopes, *arguments[1:5])
        ctx.activation, ctx.eps = arguments[0], arguments[5]
        ctx.mark_non_differentiable(slopes)
        return mean, inverse_std, slopes

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, grad_inverse_std: Tensor, _: Any) -> Any:
        slopes, *parameters = ctx.saved_tensors
        if torch.is_grad_enabled():
            operator = torch.ops.normact.proxy_statistics_differentiable_backward
            rows = operator(ctx.activation, grad_mean, grad_inverse_std, *parameters, ctx.eps)
        else:
            rows = torch.ops.normact.proxy_statistics_backward(grad_mean, grad_inverse_std, slopes, *parameters)
        return (None, None, *_wanted(rows, ctx.needs_input_grad[2:6]), None)


def _recorded(function: Any, keyset: Any, arguments: Tuple[Any, ...]) -> Any:
    if not _are_functorch_transforms_active():
        return function.apply(keyset, *arguments)
    with enable_single_level_autograd_function():
        return function.apply(keyset, *arguments)


def _below(operator: Any, keyset: Any, arguments: Tuple[Any, ...]) -> Any:
    """Run the operator's own implementation, without its gradient."""
    with _AutoDispatchBelowAutograd():
        return operator.redispatch(keyset & _after_autograd_keyset, *arguments)


def _is_recorded(tensors: Tuple[Optional[Tensor], ...], name: str) -> bool:
    """Whether autograd records the operator.

    Raises:
        NotImplementedError: a forward-mode derivative is being taken.
    """
    given = [tensor for tensor in tensors if tensor is not None]
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in given):
        raise NotImplementedError(
            f'normact::{name} has no forward-mode derivative; build the layer with kernel="reference" for that'
        )
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)


def _wanted(rows: Tensor, needed: Tuple[bool, ...]) -> List[Optional[Tensor]]:
    return [rows[index] if is_needed else None for index, is_needed in enumerate(needed)]


def _refusal(name: str) -> Any:
    def backward(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"derivative for normact::{name} is not implemented")

    return backward
