"""What torch's transforms ask of the fused operators: gradients of gradients, and batches of batches.

A backward that runs with create_graph is here in ordinary, differentiable operations (csrc/autograd.cpp calls it);
every other one runs the fused kernel.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from normact.kernels.arguments import LayerArguments, ProxyArguments, called_flat
from normact.proxy import proxy_statistics
from normact.reference import reference_norm_act

_libraries: List[Any] = []  # registrations live as long as their library object


def register_transforms() -> None:
    """Make the functions of this file the operators' implementation on every device. Once per process."""
    library = torch.library.Library("normact", "IMPL")
    for function in (norm_act_differentiable_backward, proxy_statistics_differentiable_backward):
        library.impl(function.__name__, called_flat(function), "CompositeImplicitAutograd")
    _libraries.append(library)
    torch.library.register_vmap("normact::norm_act", norm_act_of_batches)


def norm_act_of_batches(
    info: Any, in_dims: Tuple[Optional[int], ...], x: Tensor, *others: Any
) -> Tuple[Tuple[Tensor, ...], Tuple[int, int]]:
    """Return a batch of x alone is a larger batch; with parameters of its own, each member is computed by itself."""
    if in_dims[0] is not None and not any(dim is not None for dim in in_dims[1:]):
        stacked = x.movedim(in_dims[0], 0)
        results = torch.ops.normact.norm_act(stacked.flatten(0, 1), *others)
        return tuple(value.unflatten(0, stacked.shape[:2]) for value in results), (0, 0)
    arguments = list(zip((x, *others), in_dims))
    members = [
        torch.ops.normact.norm_act(*(a if dim is None else a.select(dim, index) for a, dim in arguments))
        for index in range(info.batch_size)
    ]
    out, statistics = zip(*members)
    return (torch.stack(out), torch.stack(statistics)), (0, 0)


def norm_act_differentiable_backward(
    grad: Tensor, x: Tensor, layer: LayerArguments, eps: float
) -> Tuple[Tensor, Tensor]:
    """Return the gradient of x, and those of the four per-channel values as rows of float32."""
    grouping = "strided" if layer.strided else "contiguous"

    def forward(x: Tensor, *rows: Optional[Tensor]) -> Tensor:
        # In float32, as the kernels compute, whatever the type of x.
        y = reference_norm_act(
            x.float(), *rows, num_groups=layer.num_groups, grouping=grouping, activation=layer.activation, eps=eps
        )
        return y.to(x.dtype)

    dx, *gradients = _pulled_back(forward, (x, *layer.rows), grad.to(x.dtype))
    return torch.zeros_like(x) if dx is None else dx, _rows(gradients, x.shape[1], x)


def proxy_statistics_differentiable_backward(
    activation: str,
    grad_mean: Optional[Tensor],
    grad_inverse_std: Optional[Tensor],
    proxy: ProxyArguments,
    eps: float,
) -> Tensor:
    """Return the gradients of the four parameters as rows of float32."""
    given = next(value for value in proxy if value is not None)
    ones, zeros = torch.ones_like(given, dtype=torch.float32), torch.zeros_like(given, dtype=torch.float32)

    def forward(weight: Optional[Tensor], *others: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        gamma = ones if weight is None else weight
        mean, inverse_std = proxy_statistics(activation, gamma, others[0], others[1], others[2], eps=eps)
        return mean.float(), inverse_std.float()

    grads = tuple(zeros if grad is None else grad for grad in (grad_mean, grad_inverse_std))
    return _rows(_pulled_back(forward, proxy, grads), given.shape[0], given)


def _pulled_back(
    function: Callable[..., Any], arguments: Sequence[Optional[Tensor]], grads: Any
) -> List[Optional[Tensor]]:
    """Return the gradients of a function's arguments, differentiable by arguments and grads.

    None for an argument that is absent or needs no gradient.
    """
    with torch.enable_grad():
        # Views: the gradient stops at them, though arguments may depend on each other.
        views = [None if argument is None else argument.view_as(argument) for argument in arguments]
        out = function(*views)
    wanted = [view for view in views if view is not None and view.requires_grad]
    gradients = iter(torch.autograd.grad(out, wanted, grads, create_graph=True, allow_unused=True))
    return [next(gradients) if view is not None and view.requires_grad else None for view in views]


def _rows(gradients: Sequence[Optional[Tensor]], channels: int, like: Tensor) -> Tensor:
    zeros = like.new_zeros(channels, dtype=torch.float32)
    return torch.stack([zeros if gradient is None else gradient.float() for gradient in gradients])
