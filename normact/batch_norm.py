"""Batch norm over ghost batches of one process, or over several processes."""

from __future__ import annotations

import math
from typing import Any, List, Optional, Tuple

import torch
import torch.distributed as dist
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from normact.channels import affine, check_channels
from normact.norm import Norm

BATCH_NORM_MOMENTUM = 0.1


class BatchNorm(Norm):
    """Batch norm over a normalization batch that may be smaller or larger than the micro-batch.

    Formula: (x - mean_c) / sqrt(var_c + eps); in training, mean and population variance over the
    normalization batch and all positions, and running = (1 - a) running + a batch with the unbiased
    variance; in evaluation, the running values.

    Smaller: the micro-batch is split along dim 0, in order, into ghost batches of norm_batch_size. Larger: statistics
    are shared by the processes of `process_group`, which the backend sets (None: this process alone).
    All processes of a group must have equal counts.

    `momentum` is of a weight update: with k normalization batches in an update (ghost batches of a forward, times
    `forwards_per_update`), a = 1 - (1 - momentum)^(1/k) for each, one after another. What an update leaves of the old
    value is then 1 - momentum whatever k is, and so whatever norm_batch_size is and however a machine cuts up the
    update; the weights of the update's own batches differ by a factor of 1 - momentum at most. With a = momentum for
    each, ghost batches of two images would leave running values of the last twenty or so images alone. Even so they
    are means *within* small batches: of the variance they miss what the batches' means differ by
    (`reestimate_statistics` does not).

    Args:
        channels: C.
        norm_batch_size: images that share statistics; None: all that one forward sees, over all processes of the group.
        eps: added to the variance.
        momentum: weight of a weight update's images in the running statistics.

    Attributes:
        forwards_per_update: forward passes in a weight update; more than 1 where gradients are accumulated.
        process_group: the processes that share statistics.

    Shape:
        (N, C, *spatial) -> same.

    Raises:
        ValueError: norm_batch_size cannot be honoured with this micro-batch and group; in training, a
            single value per channel.

    Source: Ioffe and Szegedy, "Batch Normalization", 2015; ghost batches: Hoffer et al., 2017.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        channels: int,
        *,
        norm_batch_size: Optional[int] = None,
        eps: float = 1e-5,
        momentum: float = BATCH_NORM_MOMENTUM,
    ) -> None:
        super().__init__()
        self.channels, self.norm_batch_size, self.eps, self.momentum = channels, norm_batch_size, eps, momentum
        self.forwards_per_update = 1
        self.process_group: Optional[Any] = None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, weight: Optional[Tensor] = None, bias: Optional[Tensor] = None) -> Tensor:
        check_channels(x, self.channels)
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, False, 0.0, self.eps)
        if self.process_group is not None:
            return self._shared(x, weight, bias)
        return self._of_this_process(x, weight, bias, self.running_mean, self.running_var)

    def normalized(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, None, None, False, 0.0, self.eps)
        return self._of_this_process(x, None, None, self.running_mean.clone(), self.running_var.clone())

    def evaluation_affine(self) -> Tuple[Tensor, Tensor]:
        return running_affine(self)

    def _of_this_process(
        self, x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], running_mean: Tensor, running_var: Tensor
    ) -> Tensor:
        return batch_norm(
            x,
            norm_batch_size=self.norm_batch_size,
            eps=self.eps,
            momentum=self.momentum,
            forwards_per_update=self.forwards_per_update,
            running_mean=running_mean,
            running_var=running_var,
            weight=weight,
            bias=bias,
        )

    def _shared(self, x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor]) -> Tensor:
        processes = dist.get_world_size(self.process_group)
        if self.norm_batch_size is not None and x.shape[0] * processes != self.norm_batch_size:
            raise ValueError(
                f"norm_batch_size {self.norm_batch_size} is not micro-batch {x.shape[0]} x {processes} processes; use "
                f"norm_batch_size {x.shape[0] * processes}, or change the micro-batch or the group"
            )
        count = processes * x.numel() // self.channels
        _check_values_per_channel(x, count)
        values = x.double() if x.dtype == torch.float64 else x.float()
        dims = [0] + list(range(2, x.dim()))
        local_var, local_mean = torch.var_mean(values, dims, unbiased=False)
        gathered = _AllGather.apply(torch.stack([local_mean, local_var]), self.process_group)
        # Equal counts: the whole mean is the mean of means, and the whole variance adds that of the means.
        mean = gathered[:, 0].mean(dim=0)
        var = (gathered[:, 1] + (gathered[:, 0] - mean) ** 2).mean(dim=0)
        with torch.no_grad():
            share = momentum_of_a_batch(self.momentum, self.forwards_per_update)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), share)
        scale = torch.rsqrt(var + self.eps)
        scale = scale if weight is None else scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        return affine(values, scale, shift).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.channels}, norm_batch_size={self.norm_batch_size}, eps={self.eps}, momentum={self.momentum}"


@torch.fx.wrap
def batch_norm(
    x: Tensor,
    *,
    norm_batch_size: Optional[int],
    eps: float,
    momentum: float,
    forwards_per_update: int,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
) -> Tensor:
    """Batch norm in training on one process, ghost batch after ghost batch; updates the running statistics in place.

    Raises:
        ValueError: the micro-batch is smaller than norm_batch_size or not a multiple of it; a single value per channel.
    """
    images = x.shape[0]
    size = images if norm_batch_size is None else norm_batch_size
    if size > images:
        raise ValueError(
            f"norm_batch_size {size} is larger than the micro-batch {images} and no process group shares the "
            f"statistics; use norm_batch_size {images} or smaller, or a backend that shares them over processes"
        )
    if images % size:
        raise ValueError(
            f"micro-batch {images} is not a multiple of norm_batch_size {size}; use a micro-batch of "
            f"{images - images % size} or {images - images % size + size}"
        )
    _check_values_per_channel(x, size * math.prod(x.shape[2:]))
    ghosts = [x] if size == images else x.split(size)
    share = momentum_of_a_batch(momentum, len(ghosts) * forwards_per_update)
    outputs = [F.batch_norm(ghost, running_mean, running_var, weight, bias, True, share, eps) for ghost in ghosts]
    return outputs[0] if size == images else torch.cat(outputs)


def running_affine(norm: Any) -> Tuple[Tensor, Tensor]:
    """Return what a batch norm, torch's or this one, is in evaluation: (scale, shift), (C,) float64 each."""
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    return scale, -norm.running_mean.double() * scale


def momentum_of_a_batch(momentum: float, batches: int) -> float:
    """1 - (1 - momentum)^(1 / batches): what each of an update's batches weighs.

    Together they weigh `momentum`; a single one does to the bit.
    """
    return momentum if batches == 1 else 1.0 - (1.0 - momentum) ** (1.0 / batches)


def _check_values_per_channel(x: Tensor, values: int) -> None:
    if values == 1:
        raise ValueError(
            f"got shape {tuple(x.shape)}: batch norm in training needs more than one value per channel; use a larger "
            "normalization batch or image, or a batch-independent norm"
        )


class _AllGather(torch.autograd.Function):
    """Stack a tensor of every process: (...) -> (processes, ...); the gradient is summed over processes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        parts: List[Tensor] = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, values.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, None]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total[dist.get_rank(ctx.group)], None


# fx records a wrapped function by the module that calls it.
torch.fx.wrap("check_channels")
