"""torch's loss functions on the device: they mark their results as losses."""

from __future__ import annotations

from typing import Any, Callable, Dict, Tuple

import torch
import torch.nn.functional as F
from torch.nn import _reduction

from ..errors import backend_error
from .device_run import DeviceRun

Arguments = Tuple[Any, ...]
Keywords = Dict[str, Any]
MARKED = (
    "l1_loss mse_loss smooth_l1_loss binary_cross_entropy_with_logits poisson_nll_loss hinge_embedding_loss "
    "soft_margin_loss cosine_embedding_loss margin_ranking_loss triplet_margin_loss"
).split()


def _marked(run: DeviceRun, func: Callable[..., Any], args: Arguments, kwargs: Keywords) -> Any:
    loss = func(*args, **kwargs)
    run.losses.append(loss)
    return loss


def _kl_div(run: DeviceRun, func: Callable[..., Any], args: Arguments, kwargs: Keywords) -> Any:
    """torch divides by the batch outside the loss operation: the marked loss of "batchmean" is the sum."""
    names = ("input", "target", "size_average", "reduce", "reduction", "log_target")
    given = {**dict(zip(names, args)), **kwargs}
    if given.get("reduction") != "batchmean":
        return _marked(run, func, args, kwargs)
    total = _marked(run, func, (), {**given, "reduction": "sum"})
    return total / given["input"].shape[0]


def _binary_cross_entropy(run: DeviceRun, func: Callable[..., Any], args: Arguments, kwargs: Keywords) -> Any:
    """-(y log p + (1 - y) log(1 - p)): torch keeps the logarithms above -100, the device does not."""
    names = ("input", "target", "weight", "size_average", "reduce", "reduction")
    given = {**dict(zip(names, args)), **kwargs}
    inputs, target, weight = given["input"], given["target"], given.get("weight")
    if inputs.shape != target.shape:
        return func(*args, **kwargs)  # says that it is wrong
    losses = -(target * inputs.log() + (1 - target) * (1 - inputs).log())
    loss = _reduced(losses if weight is None else losses * weight, given)
    run.losses.append(loss)
    return loss


def _reduced(losses: torch.Tensor, given: Keywords) -> torch.Tensor:
    reduction = given.get("reduction", "mean")
    if given.get("size_average") is not None or given.get("reduce") is not None:
        reduction = _reduction.legacy_get_string(given.get("size_average"), given.get("reduce"))
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.mean()


def _ctc_loss(run: DeviceRun, func: Callable[..., Any], args: Arguments, kwargs: Keywords) -> Any:
    names = ("log_probs", "targets", "input_lengths", "target_lengths", "blank", "reduction", "zero_infinity")
    if {**dict(zip(names, args)), **kwargs}.get("reduction") in ("none", 0):
        raise backend_error('CTCLoss with reduction="none" is currently not supported')
    return _marked(run, func, args, kwargs)


def _nll_loss(run: DeviceRun, func: Callable[..., Any], args: Arguments, kwargs: Keywords) -> Any:
    names = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction")
    given = {**dict(zip(names, args)), **kwargs}
    _refuse_class_weights(given)
    return _marked(run, func, (), {**given, "target": given["target"].long()})


def _cross_entropy(run: DeviceRun, func: Callable[..., Any], args: Arguments, kwargs: Keywords) -> Any:
    """Cross entropy is taken apart into log_softmax and nll_loss, and only the latter is marked.

    Smoothed: (1 - s) * nll + s / classes * sum over classes of -log p, of which nll alone is a loss. With class
    probabilities as targets there is no nll and so no loss.
    """
    names = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
    given = {**dict(zip(names, args)), **kwargs}
    _refuse_class_weights(given)
    if given["target"].is_floating_point():
        return func(*args, **kwargs)
    target = given["target"].long()
    smoothing = given.get("label_smoothing", 0.0)
    if not smoothing:
        return _marked(run, func, (), {**given, "target": target})
    inputs = given["input"]
    class_dim = 0 if inputs.dim() == 1 else 1
    reduction, ignored = given.get("reduction", "mean"), given.get("ignore_index", -100)
    log_probabilities = F.log_softmax(inputs, class_dim)
    nll = F.nll_loss(log_probabilities, target, ignore_index=ignored, reduction=reduction)
    run.losses.append(nll)
    spread = -log_probabilities.sum(class_dim)
    spread = spread.masked_fill(target == ignored, 0.0)
    if reduction == "mean":
        spread = spread.sum() / (target != ignored).sum()
    elif reduction == "sum":
        spread = spread.sum()
    return (1 - smoothing) * nll + spread * (smoothing / inputs.shape[class_dim])


def _refuse_class_weights(given: Keywords) -> None:
    if given.get("weight") is not None:
        raise backend_error('Parameter "weight" is unsupported: weight the samples of an unreduced loss instead')


def _handlers() -> Dict[Any, Callable[..., Any]]:
    handlers: Dict[Any, Callable[..., Any]] = {getattr(F, name): _marked for name in MARKED}
    for name in MARKED:  # the compiled functions below the Python ones, for programs that call them directly
        for namespace in (torch, torch._C._nn):
            if hasattr(namespace, name):
                handlers.setdefault(getattr(namespace, name), _marked)
    handlers[F.binary_cross_entropy] = _binary_cross_entropy
    handlers[F.ctc_loss] = handlers[torch.ctc_loss] = _ctc_loss
    handlers[torch.kl_div] = _marked
    handlers[F.kl_div] = _kl_div
    handlers[F.nll_loss] = _nll_loss
    handlers[F.cross_entropy] = _cross_entropy
    return handlers


LOSS_HANDLERS = _handlers()
