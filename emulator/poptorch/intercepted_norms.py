"""torch's normalizations on the device: who updates buffers, and the strided channel grouping of group norm."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.nn.functional as F

from .device_run import DeviceRun

Arguments = Tuple[Any, ...]
Keywords = Dict[str, Any]


def _with_running_statistics(position: int) -> Callable[..., Any]:
    """A norm whose running mean and variance are the arguments `position` and the next."""

    def handle(run: DeviceRun, func: Callable[..., Any], args: Arguments, kwargs: Keywords) -> Any:
        found = [kwargs.get("running_mean"), kwargs.get("running_var"), *args[position : position + 2]]
        buffers = [buffer for buffer in found if isinstance(buffer, torch.Tensor)]
        before = [buffer._version for buffer in buffers]
        result = func(*args, **kwargs)
        for buffer, version in zip(buffers, before):
            steps = run.updates_by_norms.get(id(buffer), 0)
            run.updates_by_norms[id(buffer)] = steps + buffer._version - version
        return result

    return handle


def _group_norm(run: DeviceRun, func: Callable[..., Any], args: Arguments, kwargs: Keywords) -> Any:
    names = ("input", "num_groups", "weight", "bias", "eps")
    given = {**dict(zip(names, args)), **kwargs}
    groups, channels = given["num_groups"], given["input"].shape[1]
    if not run.strided_group_norm or groups in (1, channels):
        return func(*args, **kwargs)
    return strided_group_norm(given["input"], groups, given.get("weight"), given.get("bias"), given.get("eps", 1e-5))


def strided_group_norm(
    inputs: torch.Tensor, groups: int, weight: Optional[torch.Tensor], bias: Optional[torch.Tensor], eps: float
) -> torch.Tensor:
    """Group norm where channel c belongs to group c % groups; weight and bias stay with their channels.

    Shape: (N, C, *) -> same
    """
    samples, channels = inputs.shape[:2]
    rest = inputs.shape[2:]
    by_group = inputs.reshape(samples, channels // groups, groups, -1).transpose(1, 2)
    normalized = F.group_norm(by_group.reshape(samples, channels, *rest), groups, eps=eps)
    in_order = normalized.reshape(samples, groups, channels // groups, -1).transpose(1, 2).reshape(inputs.shape)
    per_channel = (1, channels) + (1,) * len(rest)
    if weight is not None:
        in_order = in_order * weight.reshape(per_channel)
    return in_order if bias is None else in_order + bias.reshape(per_channel)


NORM_HANDLERS = {
    F.batch_norm: _with_running_statistics(1),
    torch.batch_norm: _with_running_statistics(3),
    F.instance_norm: _with_running_statistics(1),
    torch.instance_norm: _with_running_statistics(3),
    F.group_norm: _group_norm,
}
