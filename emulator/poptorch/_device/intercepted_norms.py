"""torch's normalizations on the device: who updates buffers, strided channel groups, and folded micro steps."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.nn.functional as F

from ..errors import backend_error
from .device_run import DeviceRun

Arguments = Tuple[Any, ...]
Keywords = Dict[str, Any]
_GROUP_NORM = ("input", "num_groups", "weight", "bias", "eps", "cudnn_enabled")
_LAYER_NORM = ("input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable")


class _OnAllSteps(torch.autograd.Function):
    """function(x, *parameters) of folded micro steps as one call on the rows of all of them.

    torch.func.vmap takes norms apart into several operations; a function that treats the rows of x one by one gives the
    same in one. As this is only a rule for vmap, it has no meaning of its own where x is the same in all steps.
    """

    @staticmethod
    def forward(function: Callable[..., torch.Tensor], x: torch.Tensor, *parameters: Any) -> torch.Tensor:
        raise NotImplementedError("a norm of something that is the same in all micro steps is not folded")

    @staticmethod
    def setup_context(ctx: Any, inputs: Arguments, output: Any) -> None:
        """Nothing is saved: forward() never returns."""

    @staticmethod
    def vmap(
        info: Any, in_dims: Arguments, function: Callable[..., torch.Tensor], x: torch.Tensor, *parameters: Any
    ) -> Any:
        """Join the step and row dimensions, call, and part them again."""
        if in_dims[1] is None or any(dim is not None for dim in in_dims[2:]):
            raise NotImplementedError("a norm with weights of their own for each micro step is not folded")
        steps = x.movedim(in_dims[1], 0)
        return function(steps.flatten(0, 1), *parameters).unflatten(0, steps.shape[:2]), 0


def _by_row(run: DeviceRun, function: Callable[..., torch.Tensor], x: torch.Tensor, *parameters: Any) -> torch.Tensor:
    return _OnAllSteps.apply(function, x, *parameters) if run.is_folded else function(x, *parameters)


def _with_parameters(names: Tuple[str, ...], norm: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler of a norm whose arguments have these names.

    Raises:
        Error: when called with only one of weight and bias, or of running mean and variance.
    """

    def handle(run: DeviceRun, func: Callable[..., Any], args: Arguments, kwargs: Keywords) -> Any:
        given = {**dict(zip(names, args)), **kwargs}
        for pair in (("weight", "bias"), ("running_mean", "running_var")):
            missing = [name for name in pair if given.get(name) is None]
            if len(missing) == 1:
                present = pair[1 - pair.index(missing[0])]
                neutral = "ones" if missing[0] in ("weight", "running_var") else "zeros"
                raise backend_error(
                    f"{func.__name__} has a {present} and no {missing[0]}: the device's norms take both or neither; "
                    f"pass {neutral} as {missing[0]}"
                )
        return norm(run, func, given)

    return handle


def _with_running_statistics(run: DeviceRun, func: Callable[..., Any], given: Keywords) -> Any:
    """Return a norm that may update its running mean and variance.

    The device updates them with the weights, so in training alone: a model that is left in training mode is normalized
    by its batch in inference too, and its running statistics stay as they are.
    """
    uses_batch = given.get("training", False)
    if run.is_folded and not uses_batch:
        return _with_fixed_statistics(run, func, given)
    if uses_batch and not run.is_training:
        return func(**{**given, "running_mean": None, "running_var": None})
    buffers = [given[name] for name in ("running_mean", "running_var") if given.get(name) is not None]
    run.updates_statistics = run.updates_statistics or bool(uses_batch and buffers)
    before = [buffer._version for buffer in buffers]
    result = func(**given)
    for buffer, version in zip(buffers, before):
        steps = run.updates_by_norms.get(id(buffer), 0)
        run.updates_by_norms[id(buffer)] = steps + buffer._version - version
    return result


def _with_fixed_statistics(run: DeviceRun, func: Callable[..., Any], given: Keywords) -> Any:
    tensors = {name: given[name] for name in _TENSORS if name in given}
    rest = {name: value for name, value in given.items() if name not in tensors}
    return _by_row(run, lambda *values: func(**dict(zip(tensors, values)), **rest), *tensors.values())


def _instance_norm(run: DeviceRun, func: Callable[..., Any], given: Keywords) -> Any:
    """On the device a group norm of one channel a group, which has no running statistics, in any mode."""
    eps, parameters = given.get("eps", 1e-5), (given.get("weight"), given.get("bias"))
    return _by_row(
        run, lambda x, weight, bias: F.instance_norm(x, None, None, weight, bias, eps=eps), given["input"], *parameters
    )


def _group_norm(run: DeviceRun, func: Callable[..., Any], given: Keywords) -> Any:
    groups, eps, channels = given["num_groups"], given.get("eps", 1e-5), given["input"].shape[1]
    norm = strided_group_norm if run.strided_group_norm and groups not in (1, channels) else F.group_norm
    parameters = given.get("weight"), given.get("bias")
    return _by_row(run, lambda x, weight, bias: norm(x, groups, weight, bias, eps), given["input"], *parameters)


def _layer_norm(run: DeviceRun, func: Callable[..., Any], given: Keywords) -> Any:
    shape, eps, x = given["normalized_shape"], given.get("eps", 1e-5), given["input"]
    if x.dim() == len(shape):  # one row, and no dimension for it
        return func(**given)
    parameters = given.get("weight"), given.get("bias")
    return _by_row(run, lambda x, weight, bias: F.layer_norm(x, shape, weight, bias, eps), x, *parameters)


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


_TENSORS = ("input", "running_mean", "running_var", "weight", "bias")  # in the order of torch.nn.functional
_TENSORS_OF_TORCH = ("input", "weight", "bias", "running_mean", "running_var")
_NUMBERS = ("momentum", "eps", "cudnn_enabled")
NORM_HANDLERS = {
    F.batch_norm: _with_parameters((*_TENSORS, "training", *_NUMBERS), _with_running_statistics),
    torch.batch_norm: _with_parameters((*_TENSORS_OF_TORCH, "training", *_NUMBERS), _with_running_statistics),
    F.instance_norm: _with_parameters((*_TENSORS, "use_input_stats", *_NUMBERS), _instance_norm),
    torch.instance_norm: _with_parameters((*_TENSORS_OF_TORCH, "use_input_stats", *_NUMBERS), _instance_norm),
    F.group_norm: _with_parameters(_GROUP_NORM, _group_norm),
    torch.group_norm: _with_parameters(_GROUP_NORM, _group_norm),
    F.layer_norm: _with_parameters(_LAYER_NORM, _layer_norm),
    torch.layer_norm: _with_parameters(_LAYER_NORM, _layer_norm),
}
