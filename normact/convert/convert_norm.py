"""Replace the norms of any network by norm+activation layers with Proxy Normalization."""

from __future__ import annotations

import logging
from typing import Dict, List, NamedTuple, Optional, Set, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normact.activations import Activation
from normact.convert.calibrate import (
    CalibratedLayer,
    calibrate_layers,
    check_calibration,
    source_of,
)
from normact.convert.carry import carry_over, new_parameters, why_kept, why_not_taken
from normact.convert.report import ConversionReport, ConvertedNorm
from normact.convert.rewrite import Rewriting, has_in_place_operations, rewrite_forward, why_not_rewritten
from normact.data_flow import Consumer, find_consumers
from normact.factory import NormActFactory
from normact.norm_act import NormAct
from normact.recognize import NormDescription, describe_norm
from normact.tracing import optional_arguments

logger = logging.getLogger(__name__)


class _Plan(NamedTuple):
    """What is to happen to one norm."""

    path: str
    old: nn.Module
    new: Optional[nn.Module]
    layer: Optional[NormAct]
    activation_module: Optional[nn.Module]
    row: ConvertedNorm


class _Rewrite(NamedTuple):
    """A pair whose activation can only be removed from the code of the module that applies it."""

    norm: nn.Module
    path: str
    enclosing: str
    caller: str


def convert_norm(
    model: nn.Module, factory: NormActFactory, *, out_of_place: bool = False, calibrate: Optional[Tensor] = None
) -> Tuple[nn.Module, ConversionReport]:
    """Replace every norm of a network, together with the activation that follows it, by factory(...) layers.

    * A norm layer that holds its activation (a torch norm with an `act` module) is replaced in place.
    * A norm followed by an activation: the data flow is found by torch.fx tracing. The layer takes the norm's
      place, and an activation module used nowhere else becomes an identity. Where the activation is a function
      or a module used at several places, the smallest module around the pair gets a new forward, made from a torch.fx
      graph, and keeps its class, methods, attributes and hooks. A graph is fixed: a switch that such a module reads in
      its forward no longer acts after the conversion. A module whose forward is more than a graph (it enters contexts
      such as torch.no_grad, sets attributes, differs between training and evaluation) keeps it, and its pairs are not
      made.
    * A norm without an activation, or whose activation is unknown, becomes a norm with an affine (beta
      included), without PN.
    * A norm of a class that is not known by its full name is kept, as is one with hooks or parametrizations: it may
      do more than that.

    gamma and beta are the same parameters as before: an optimizer made before the conversion has them, but not the new
    ones that the report names. Where a norm's parameters are frozen, so are its layer's. From batch norm to batch norm
    the running statistics and momentum are carried over; eps and the rest are the factory's. The network
    is edited in place, after every layer was built: an error leaves it as it was. Optional arguments of the
    network's own forward are taken at their defaults. Hooks do not run. torch.jit.script takes no network with these
    layers, and says so; torch.jit.trace, torch.export and torch.compile do.

    Args:
        model: any network.
        factory: makes the layers.
        out_of_place: also make the network's in-place operations ordinary ones, since a layer's output may not be
            changed in place where others watch it (per-sample gradients); the report names those that stay.
        calibrate: a few hundred training images as the network takes them, one batch: where a batch norm becomes
            another norm, the network keeps its function as nearly as constants can (see
            normact.convert.calibrate.calibrate_layers). Layers and the weights behind them are set; hooks run.

    Returns:
        The network, and a report with one row for each norm of the original.

    Raises:
        ValueError: a layer cannot be built (the message names the norm); norm "+ws", since convolutions are not
            replaced; calibrate with a norm that batch norm's moments say nothing of.
    """
    if factory.norm.endswith("+ws"):
        raise ValueError(
            f"norm {factory.norm!r}: convert_norm replaces norms, not convolutions; use {factory.norm[:-3]!r}, or "
            "build the network with factory.conv2d"
        )
    if calibrate is not None:
        check_calibration(factory)
    found = [(path, module, describe_norm(module)) for path, module in model.named_modules()]
    norms = [(path, module, description) for path, module, description in found if description is not None]
    consumers: Dict[nn.Module, Consumer] = {}
    failures: List[Tuple[str, str]] = []
    # A layer that holds its activation needs no tracing.
    if any(d.activation == "identity" and not d.kept_because for _, _, d in norms):
        consumers, failures = find_consumers(model)
        # What follows a norm that is kept stays too.
        replaced = [(module, d) for _, module, d in norms if module in consumers and not why_kept(module, d, factory)]
        consumers = {module: _with_fit_activation(consumers[module], d.channels, factory) for module, d in replaced}
    rewritable, refused = _find_rewrites(model, norms, consumers)
    plans = [_plan(model, factory, path, module, d, consumers=consumers, refused=refused) for path, module, d in norms]
    before = {id(parameter) for parameter in model.parameters()}
    model, rewritten = _edit(model, plans, rewritable)
    in_place: Tuple[Tuple[str, str], ...] = ()
    if out_of_place:
        more, in_place = _remove_in_place_operations(model)
        rewritten = rewritten | more
    calibrated: Tuple[CalibratedLayer, ...] = ()
    uncalibrated: Tuple[str, ...] = ()
    if calibrate is not None:
        layers = {
            plan.layer: source_of(plan.path, plan.old)
            for plan in plans
            if plan.layer is not None and isinstance(plan.old, _BatchNorm) and plan.old.running_mean is not None
        }
        calibrated = calibrate_layers(model, layers, calibrate)
        uncalibrated = tuple(plan.path for plan in plans if plan.layer is not None and plan.layer not in layers)
    for path, error in failures:
        logger.warning("convert_norm: data flow of %s could not be traced: %s", path or "the network", error)
    return model, ConversionReport(
        norms=tuple(plan.row for plan in plans),
        rewritten=tuple(sorted(rewritten)),
        trace_failures=tuple(failures),
        new_parameters=new_parameters(model, before),
        in_place=in_place,
        calibrated=calibrated,
        uncalibrated=uncalibrated,
    )


def _with_fit_activation(consumer: Consumer, channels: int, factory: NormActFactory) -> Consumer:
    """Without its activation where that is a module that cannot be part of a layer."""
    reason = why_not_taken(consumer.activation, channels, factory)
    return Consumer(None, f"followed by {reason}") if reason else consumer


def _find_rewrites(
    model: nn.Module, norms: List[Tuple[str, nn.Module, NormDescription]], consumers: Dict[nn.Module, Consumer]
) -> Tuple[List[_Rewrite], Dict[nn.Module, str]]:
    """Return the pairs that need a rewritten graph, and why some cannot have one."""
    rewrites: List[_Rewrite] = []
    for path, module, _ in norms:
        consumer = consumers.get(module)
        if consumer is None or consumer.activation is None or _is_exclusive(model, consumer):
            continue
        enclosing = _enclosing(model, path, consumer.caller)
        rewrites.append(_Rewrite(module, path, enclosing, consumer.caller))
    refused: Dict[nn.Module, str] = {}
    for enclosing in sorted({rewrite.enclosing for rewrite in rewrites}):
        group = [rewrite for rewrite in rewrites if rewrite.enclosing == enclosing]
        reason = why_not_rewritten(model.get_submodule(enclosing), _rewriting(enclosing, group))
        if reason:
            words = f"{enclosing or 'the network'} cannot be rewritten: {reason}"
            refused.update({rewrite.norm: words for rewrite in group})
    return [rewrite for rewrite in rewrites if rewrite.norm not in refused], refused


def _is_exclusive(model: nn.Module, consumer: Consumer) -> bool:
    """Whether the activation is a module that this pair alone uses."""
    if consumer.module is None or consumer.module_calls != 1:
        return False
    prefix = consumer.traced + "." if consumer.traced else ""
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is consumer.module]
    return all(name.startswith(prefix) for name in names)


def _enclosing(model: nn.Module, norm_path: str, caller: str) -> str:
    """Return the smallest module around a pair that takes required arguments alone.

    It holds the norm, and is the activation's caller or holds it. An optional argument (a shortcut that may be
    None) lets one module run two codes, and the trace of that module by itself knows one of them.
    """
    common: List[str] = []
    for a, b in zip(norm_path.split(".")[:-1], caller.split(".") if caller else []):
        if a != b:
            break
        common.append(a)
    while common and optional_arguments(model.get_submodule(".".join(common))):
        common.pop()
    return ".".join(common)


def _rewriting(enclosing: str, group: List[_Rewrite]) -> Rewriting:
    """Erase the activations of a group of pairs; of the modules inside, only those on the way to them are entered."""
    cut = len(enclosing) + 1 if enclosing else 0
    entered: Set[str] = set()
    for rewrite in group:
        for path in (rewrite.path[cut:].rpartition(".")[0], rewrite.caller[cut:]):
            parts = path.split(".") if path else []
            entered.update(".".join(parts[: i + 1]) for i in range(len(parts)))
    return Rewriting(tuple(sorted(entered)), tuple(rewrite.path[cut:] for rewrite in group))


def _plan(
    model: nn.Module,
    factory: NormActFactory,
    path: str,
    old: nn.Module,
    description: NormDescription,
    *,
    consumers: Dict[nn.Module, Consumer],
    refused: Dict[nn.Module, str],
) -> _Plan:
    original = type(old).__name__
    kept_because = why_kept(old, description, factory)
    if kept_because:
        row = ConvertedNorm(path, original, None, None, False, kept_because)
        return _Plan(path, old, None, None, None, row)
    activation, reason, activation_module = _choose_activation(old, description, consumers, refused, factory=factory)
    try:
        layer = factory(description.channels, activation, bias=True if activation is None else None)
    except ValueError as error:
        raise ValueError(f"{path or 'the network'} ({original}): {error}") from error
    carry_over(old, layer, model, path)
    new: nn.Module = layer
    if activation is None and description.activation != "identity":
        # The activation and what stands before it stay as they were.
        kept = [child for name in ("drop", "act") for child_name, child in old.named_children() if child_name == name]
        new = nn.Sequential(layer, *kept)
        new.training = old.training
    groups = layer.norm.groups()
    num_groups = None if groups is None else groups.num_groups
    row = ConvertedNorm(path, original, factory.norm, layer.activation, layer.proxy is not None, reason, num_groups)
    return _Plan(path, old, new, layer, activation_module, row)


def _choose_activation(
    old: nn.Module,
    description: NormDescription,
    consumers: Dict[nn.Module, Consumer],
    refused: Dict[nn.Module, str],
    *,
    factory: NormActFactory,
) -> Tuple[Optional[Activation], str, Optional[nn.Module]]:
    """Return the activation that joins the layer, else the reason for none, and the module to be emptied."""
    if description.no_pair_because:
        return None, description.no_pair_because, None
    if description.activation != "identity":
        reason = why_not_taken(description.activation, description.channels, factory)
        return (None, reason, None) if reason else (description.activation, "", None)
    consumer = consumers.get(old)
    if consumer is None:
        return None, "no traced data flow reaches it", None
    if old in refused:
        return None, refused[old], None
    return consumer.activation, consumer.reason, consumer.module


def _edit(model: nn.Module, plans: List[_Plan], rewrites: List[_Rewrite]) -> Tuple[nn.Module, Set[str]]:
    """Put the layers in their places; the network, and the paths of the modules that got a new forward."""
    through_graph = {rewrite.norm for rewrite in rewrites}
    for plan in plans:
        if plan.new is None:
            continue
        # Before the layer, which may hold the activation module itself, is there.
        if plan.activation_module is not None and plan.old not in through_graph:
            model = _replace(model, plan.activation_module, nn.Identity().train(plan.activation_module.training))
        model = _replace(model, plan.old, plan.new)
    enclosings = {rewrite.enclosing for rewrite in rewrites}
    # Inner modules first: an outer graph then calls them as they are.
    for enclosing in sorted(enclosings, key=len, reverse=True):
        group = [rewrite for rewrite in rewrites if rewrite.enclosing == enclosing]
        rewrite_forward(model.get_submodule(enclosing), _rewriting(enclosing, group))
    return model, enclosings


def _remove_in_place_operations(model: nn.Module) -> Tuple[Set[str], Tuple[Tuple[str, str], ...]]:
    """Return the paths of modules with a new forward, and (path, why) of those that may change values in place."""
    rewritten: Set[str] = set()
    left: List[Tuple[str, str]] = []
    for path, module in model.named_modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False
        is_torch_or_ours = type(module).__module__.startswith(("torch.nn.", "normact."))
        if is_torch_or_ours or isinstance(module, torch.jit.ScriptModule) or not list(module.children()):
            continue
        own_code = Rewriting((), out_of_place=True)
        try:
            if not has_in_place_operations(module):
                continue
        # Whatever the module's own code raises when it meets a symbolic value.
        except Exception as error:
            left.append((path, f"{type(error).__name__}: its code could not be traced"))
            continue
        reason = why_not_rewritten(module, own_code)
        if reason:
            left.append((path, reason))
        else:
            rewrite_forward(module, own_code)
            rewritten.add(path)
    return rewritten, tuple(left)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put one module in the place of another under all its names."""
    if model is old:
        return new
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children leaves out a module's second name
            if child is old:
                setattr(parent, name, new)
    return model
