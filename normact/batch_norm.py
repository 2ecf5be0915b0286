"""Batch norm over ghost batches of one process, or over several processes."""

from __future__ import annotations

import math
from typing import Any, List, Optional, Tuple

import torch
import torch.distributed as dist
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from normact.channels import affine, check_channels

BATCH_NORM_MOMENTUM = 0.1


class BatchNorm(nn.Module):
    """Batch norm over a normalization batch that may be smaller or larger than the micro-batch.

    Formula: (x - mean_c) / sqrt(var_c + eps); in training, mean and population variance over the
    normalization batch and all positions, and running = (1 - momentum) running + momentum batch with the unbiased
    variance; in evaluation, the running values.

    Smaller: the micro-batch is split along dim 0, in order, into ghost batches of norm_batch_size, and
    the running statistics are those of processing them one after another. Larger: statistics are shared by
    the processes of `process_group`, which the backend sets (None: this process alone).
    All processes of a group must have equal counts.

    Args:
        channels: C.
        norm_batch_size: images that share statistics; None: all that one forward sees, over all processes of the group.
        eps: added to the variance.
        momentum: weight of the new value in the running statistics.

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
        self.process_group: Optional[Any] = None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor, weight: Optional[Tensor] = None, bias: Optional[Tensor] = None) -> Tensor:
        check_channels(x, self.channels)
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, weight, bias, False, 0.0, self.eps)
        if self.process_group is not None:
            return self._shared(x, weight, bias)
        return batch_norm(
            x,
            norm_batch_size=self.norm_batch_size,
            eps=self.eps,
            momentum=self.momentum,
            running_mean=self.running_mean,
            running_var=self.running_var,
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
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), self.momentum)
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
    outputs = [F.batch_norm(ghost, running_mean, running_var, weight, bias, True, momentum, eps) for ghost in ghosts]
    return outputs[0] if size == images else torch.cat(outputs)


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
