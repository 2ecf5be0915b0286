"""The backwards of the fused operators in ordinary, differentiable operations: for gradients of gradients.

A backward that runs with create_graph comes here (csrc/autograd.cpp); every other one runs the fused kernel.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from normact.proxy import proxy_statistics
from normact.reference import reference_norm_act

_libraries: List[Any] = []  # registrations live as long as their library object


def register_differentiable() -> None:
    """Make the functions of this file the operators' implementation on every device. Once per process."""
    library = torch.library.Library("normact", "IMPL")
    for function in (norm_act_differentiable_backward, proxy_statistics_differentiable_backward):
        library.impl(function.__name__, function, "CompositeImplicitAutograd")
    _libraries.append(library)


def norm_act_differentiable_backward(
    grad: Tensor,
    x: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    proxy_mean: Optional[Tensor],
    proxy_inverse_std: Optional[Tensor],
    num_groups: int,
    strided: bool,
    activation: str,
    eps: float,
) -> Tuple[Tensor, Tensor]:
    """The gradient of x, and those of the four per-channel values as rows of float32."""
    grouping = "strided" if strided else "contiguous"

    def forward(x: Tensor, *rows: Optional[Tensor]) -> Tensor:
        # In float32, as the kernels compute, whatever the type of x.
        y = reference_norm_act(
            x.float(), *rows, num_groups=num_groups, grouping=grouping, activation=activation, eps=eps
        )
        return y.to(x.dtype)

    dx, *gradients = _pulled_back(forward, (x, weight, bias, proxy_mean, proxy_inverse_std), grad.to(x.dtype))
    assert dx is not None
    return dx, _rows(gradients, x.shape[1], x)


def proxy_statistics_differentiable_backward(
    activation: str,
    grad_mean: Optional[Tensor],
    grad_inverse_std: Optional[Tensor],
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    proxy_beta: Optional[Tensor],
    proxy_gamma: Optional[Tensor],
    eps: float,
) -> Tensor:
    """The gradients of the four parameters as rows of float32."""
    parameters = (weight, bias, proxy_beta, proxy_gamma)
    given = next(value for value in parameters if value is not None)
    ones, zeros = torch.ones_like(given, dtype=torch.float32), torch.zeros_like(given, dtype=torch.float32)

    def forward(weight: Optional[Tensor], *others: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        mean, inverse_std = proxy_statistics(activation, ones if weight is None else weight, *others, eps=eps)
        return mean.float(), inverse_std.float()

    grads = tuple(zeros if grad is None else grad for grad in (grad_mean, grad_inverse_std))
    return _rows(_pulled_back(forward, parameters, grads), given.shape[0], given)


def _pulled_back(
    function: Callable[..., Any], arguments: Sequence[Optional[Tensor]], grads: Any
) -> List[Optional[Tensor]]:
    """The gradients of a function's arguments, None for an absent one; differentiable by arguments and grads."""
    places = [index for index, argument in enumerate(arguments) if argument is not None]

    def of_given(*values: Tensor) -> Any:
        full: List[Optional[Tensor]] = [None] * len(arguments)
        for index, value in zip(places, values):
            full[index] = value
        return function(*full)

    _, pull = torch.func.vjp(of_given, *(arguments[index] for index in places))
    gradients: List[Optional[Tensor]] = [None] * len(arguments)
    for index, gradient in zip(places, pull(grads)):
        gradients[index] = gradient
    return gradients


def _rows(gradients: Sequence[Optional[Tensor]], channels: int, like: Tensor) -> Tensor:
    zeros = like.new_zeros(channels, dtype=torch.float32)
    return torch.stack([zeros if gradient is None else gradient.float() for gradient in gradients])
