"""The layer under torch's expanded weights, which keep one gradient of each parameter for each sample."""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils._expanded_weights.expanded_weights_impl import ExpandedWeight, implements_per_sample_grads
from torch.nn.utils._expanded_weights.expanded_weights_utils import set_grad_sample_if_exists
from torch.overrides import handle_torch_function


def with_expanded_weights(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x) for a layer whose parameters are expanded weights, each given its `grad_sample` in backward."""
    named = dict(layer.named_parameters())
    return _layer_on_expanded_weights(layer, tuple(named), x, *named.values())


def _layer_on_expanded_weights(layer: nn.Module, names: Tuple[str, ...], x: Tensor, *parameters: Tensor) -> Any:
    return handle_torch_function(_layer_on_expanded_weights, parameters, layer, names, x, *parameters)


@implements_per_sample_grads(_layer_on_expanded_weights)
class _PerSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Any, __: Any, layer: nn.Module, names: Tuple[str, ...], x: Tensor, *given: Any) -> Tensor:
        plain = {name: _original(value).detach() for name, value in zip(names, given)}
        ctx.layer, ctx.names, ctx.given, ctx.plain = layer, names, given, plain
        with torch.enable_grad():
            ctx.x = x.detach().requires_grad_()
            ctx.out = functional_call(layer, plain, (ctx.x,))
        return ctx.out.detach()

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> Any:
        (grad_x,) = torch.autograd.grad(ctx.out, ctx.x, grad_out)

        def loss(plain: Dict[str, Tensor], x: Tensor, grad_of_one: Tensor) -> Tensor:
            return (functional_call(ctx.layer, plain, (x.unsqueeze(0),)).squeeze(0) * grad_of_one).sum()

        gradients = vmap(grad(loss), in_dims=(None, 0, 0))(ctx.plain, ctx.x.detach(), grad_out)
        for name, value in zip(ctx.names, ctx.given):
            set_grad_sample_if_exists(value, lambda _, name=name: gradients[name])
        return (None, None, None, None, grad_x, *[None] * len(ctx.given))


def _original(value: Any) -> Tensor:
    return value.orig_weight if isinstance(value, ExpandedWeight) else value
