"""The normalized value y = Norm(x) of any norm layer, before its affine and its activation.

Found by kind for this project's NormAct, torch's norms and what model libraries derive from these (timm's
BatchNormAct2d, GroupNormAct, LayerNorm2d, torchvision's LayerNorm2d, frozen batch norms). It is computed from the
layer's input and leaves the layer, its running statistics and its output alone.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import Callable, Dict, Iterator, Tuple, Union

import torch.nn.functional as F
from torch import Tensor, nn

from normact import NormAct
from normact.batch_norm import BatchNorm
from normact.recognize import describe_norm

Normalization = Callable[[Tensor], Tensor]  # x as the layer receives it -> y (N, C, *spatial)

_TORCH_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_TORCH_INSTANCE_NORM = nn.modules.instancenorm._InstanceNorm


def find_normalizations(network: nn.Module) -> Tuple[Dict[str, Normalization], Dict[str, str]]:
    """Return the norms of a network.

    Returns:
        path -> the function that gives the norm's normalized value; and path -> why there is none, for every other
        module that is a norm.
    """
    normalizations: Dict[str, Normalization] = {}
    reasons: Dict[str, str] = {}
    inside: Tuple[str, ...] = ()
    for path, module in network.named_modules():
        found = None if path.startswith(inside) else _normalization(module)
        if found is None:
            continue
        inside = (*inside, f"{path}." if path else "")  # a norm's own parts are not further norms
        if isinstance(found, str):
            reasons[path] = found
        else:
            normalizations[path] = found
    return normalizations, reasons


def _normalization(module: nn.Module) -> Union[Normalization, str, None]:
    """Return the normalization of a norm, why it has none, or None for a module that is not a norm."""
    name = type(module).__name__
    if isinstance(module, NormAct):
        return module.norm.not_normalized_because or module.norm.normalized
    if isinstance(module, _TORCH_BATCH_NORM):
        return partial(_torch_batch_norm, module)
    if isinstance(module, _TORCH_INSTANCE_NORM):
        return partial(_torch_instance_norm, module)
    if isinstance(module, nn.GroupNorm):
        return lambda x: F.group_norm(x, module.num_groups, None, None, module.eps)
    if isinstance(module, nn.LayerNorm):
        return partial(_torch_layer_norm, module)
    if name.startswith("FrozenBatchNorm"):
        return partial(_frozen_batch_norm, module)
    if describe_norm(module) is not None:
        return f"{name}: its normalized value before the affine is not known here"
    return None


def _torch_batch_norm(norm: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    if norm.training or norm.running_mean is None:
        return F.batch_norm(x, None, None, None, None, True, 0.0, norm.eps)
    return F.batch_norm(x, norm.running_mean, norm.running_var, None, None, False, 0.0, norm.eps)


def _torch_instance_norm(norm: nn.modules.instancenorm._InstanceNorm, x: Tensor) -> Tensor:
    if norm.training or norm.running_mean is None:
        return F.instance_norm(x, None, None, None, None, True, 0.0, norm.eps)
    return F.instance_norm(x, norm.running_mean, norm.running_var, None, None, False, 0.0, norm.eps)


def _torch_layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Channels: dim 1 for the classes called ...2d, else the first of the normalized dims, as in tokens (N, L, C)."""
    shape, eps = norm.normalized_shape, norm.eps
    if type(norm).__name__.endswith("2d") and len(shape) == 1:
        return F.layer_norm(x.movedim(1, -1), shape, None, None, eps).movedim(-1, 1)
    return F.layer_norm(x, shape, None, None, eps).movedim(-len(shape), 1)


def _frozen_batch_norm(norm: nn.Module, x: Tensor) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, None, None, False, 0.0, float(norm.eps))  # type: ignore[arg-type]


@contextmanager
def evaluation_form(network: nn.Module) -> Iterator[None]:
    """Put the network in evaluation mode: batch norm uses its running statistics, and dropout does nothing."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Put the network in evaluation mode, but let batch norm use the statistics of the batch, as in training.

    The statistics are of this process alone. Running statistics are as before at the end.
    """
    with evaluation_form(network):
        norms = [module for module in network.modules() if isinstance(module, (BatchNorm, _TORCH_BATCH_NORM))]
        saved = {norm: {name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms}
        groups = {norm: norm.process_group for norm in norms if isinstance(norm, BatchNorm)}
        for norm in norms:
            norm.training = True
        for norm in groups:
            norm.process_group = None
        try:
            yield
        finally:
            for norm, group in groups.items():
                norm.process_group = group
            for norm, buffers in saved.items():
                for name, buffer in norm.named_buffers():
                    buffer.copy_(buffers[name])
