"""Replace the norms of any network by norm+activation layers with Proxy Normalization."""

from __future__ import annotations

import logging
from typing import Dict, Iterator, List, NamedTuple, Optional, Set, Tuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normact.activations import Activation
from normact.convert.calibrate import (
    CalibratedLayer,
    calibrate_layers,
    check_calibration,
    source_of,
)
from normact.convert.carry import carry_over, new_parameters, what_is_left_out, why_kept, why_not_taken
from normact.convert.find_rewrites import Rewrite, find_rewrites, rewriting_of
from normact.convert.plain_attributes import held_out_of_reach, plainly_held, replace_module
from normact.convert.questions import Questions, find_questions
from normact.convert.report import ConversionReport, ConvertedNorm
from normact.convert.rewrite import remove_in_place_operations, rewrite_forward
from normact.convert.trial import norms_asked
from normact.data_flow import Consumer, DataFlow, find_data_flow
from normact.factory import NormActFactory
from normact.norm_act import NormAct
from normact.recognize import NormDescription, describe_norm

logger = logging.getLogger(__name__)


class _Plan(NamedTuple):
    """What is to happen to one norm."""

    path: str
    old: nn.Module
    new: Optional[nn.Module]
    layer: Optional[NormAct]
    activation_module: Optional[nn.Module]
    row: ConvertedNorm


def convert_norm(
    model: nn.Module, factory: NormActFactory, *, out_of_place: bool = False, calibrate: Optional[Tensor] = None
) -> Tuple[nn.Module, ConversionReport]:
    """Replace every norm of a network, together with the activation that follows it, by factory(...) layers.

    * A norm layer that holds its activation (a torch norm with an `act` module) is replaced in place.
    * A norm followed by an activation: the data flow is found by torch.fx tracing. The layer takes the norm's
      place, and an activation module used nowhere else becomes an identity. Where the activation is a function
      or a module used at several places, the smallest module around the pair gets a new forward, made from a torch.fx
      graph, and keeps its class, methods, attributes and hooks. A graph is fixed: a switch that such a module reads in
      its forward no longer acts after the conversion, but for self.training where it is handed on, as to a dropout. A
      module whose forward is more than a graph (it enters contexts such as torch.no_grad, sets attributes, differs
      otherwise between training and evaluation) keeps it, and its pairs are not made.
    * A norm without an activation, or whose activation is unknown, becomes a norm with an affine (beta
      included), without PN.
    * A norm of a class that is not known by its full name is kept, as is one with hooks or parametrizations: it may
      do more than that. So is one of which the network's forward asks what a layer has not (running statistics,
      momentum) or whether it is of its class, one that decides in any other way what the network's code does (the
      code is traced again with the layers), and one that is held where no other module can take its place.

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
    flow = find_data_flow(model) if any(not d.kept_because for _, _, d in norms) else DataFlow({}, {}, [], {})
    replaceable = {module: d for _, module, d in norms if not d.kept_because}
    questions = find_questions(model, replaceable, flow.reads, factory)
    kept = {**questions.norms, **held_out_of_reach(model)}
    while True:
        norms = [
            (path, module, d._replace(kept_because=d.kept_because or kept.get(module, ""))) for path, module, d in norms
        ]
        plans, rewritable = _plan_all(model, factory, norms, flow, questions)
        asked = norms_asked(model, flow.parts, {plan.old: plan.layer for plan in plans if plan.layer is not None})
        if not asked:
            break
        kept.update(dict.fromkeys(asked, "the network's own code would not do with another layer what it does"))
    # A layer that holds its activation needs no tracing to be found.
    failures = flow.failures if any(d.activation == "identity" and not d.kept_because for _, _, d in norms) else []
    before = {id(parameter) for parameter in model.parameters()}
    model, rewritten = _edit(model, plans, rewritable)
    in_place: Tuple[Tuple[str, str], ...] = ()
    if out_of_place:
        more, in_place = remove_in_place_operations(model)
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
        norms=(*(plan.row for plan in plans), *_unregistered_norms(model)),
        rewritten=tuple(sorted(rewritten)),
        trace_failures=tuple(failures),
        new_parameters=new_parameters(model, before),
        in_place=in_place,
        calibrated=calibrated,
        uncalibrated=uncalibrated,
    )


def _plan_all(
    model: nn.Module,
    factory: NormActFactory,
    norms: List[Tuple[str, nn.Module, NormDescription]],
    flow: DataFlow,
    questions: Questions,
) -> Tuple[List[_Plan], List[Rewrite]]:
    """Return what is to happen to each norm, and the pairs that need another forward."""
    # What follows a norm that is kept stays too.
    replaced = [(module, d) for _, module, d in norms if module in flow.consumers and not why_kept(module, d, factory)]
    consumers = {module: _with_fit_activation(flow.consumers[module], d.channels, factory) for module, d in replaced}
    rewritable, refused = find_rewrites(model, norms, consumers, questions.activations)
    plans = [_plan(model, factory, path, module, d, consumers=consumers, refused=refused) for path, module, d in norms]
    return plans, rewritable


def _with_fit_activation(consumer: Consumer, channels: int, factory: NormActFactory) -> Consumer:
    """Without its activation where that is a module that cannot be part of a layer."""
    reason = why_not_taken(consumer.activation, channels, factory)
    return Consumer(None, f"followed by {reason}") if reason else consumer


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
    reason = "; ".join(filter(None, [reason, what_is_left_out(old)]))
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


def _edit(model: nn.Module, plans: List[_Plan], rewrites: List[Rewrite]) -> Tuple[nn.Module, Set[str]]:
    """Put the layers in their places; the network, and the paths of the modules that got a new forward."""
    through_graph = {rewrite.norm for rewrite in rewrites}
    holders = [module for module in model.modules() if next(plainly_held(module), None)]
    for plan in plans:
        if plan.new is None:
            continue
        # Before the layer, which may hold the activation module itself, is there.
        if plan.activation_module is not None and plan.old not in through_graph:
            model = replace_module(
                model, plan.activation_module, nn.Identity().train(plan.activation_module.training), holders
            )
        model = replace_module(model, plan.old, plan.new, holders)
    enclosings = {rewrite.enclosing for rewrite in rewrites}
    # Inner modules first: an outer graph then calls them as they are.
    for enclosing in sorted(enclosings, key=len, reverse=True):
        group = [rewrite for rewrite in rewrites if rewrite.enclosing == enclosing]
        rewrite_forward(model.get_submodule(enclosing), rewriting_of(enclosing, group))
    return model, enclosings


def _unregistered_norms(model: nn.Module) -> Iterator[ConvertedNorm]:
    """Yield rows of the norms that the network holds where torch does not see them."""
    registered = set(model.modules())
    for path, parent in model.named_modules():
        for name, module in plainly_held(parent):
            if module not in registered and describe_norm(module) is not None:
                reason = (
                    "held in a plain attribute, where torch neither trains nor moves it; use nn.ModuleList or the like"
                )
                yield ConvertedNorm(
                    f"{path}.{name}" if path else name, type(module).__name__, None, None, False, reason
                )
