"""Replace the norms of any network by norm+activation layers with Proxy Normalization."""

from __future__ import annotations

import logging
from typing import Dict, List, NamedTuple, Optional, Set, Tuple

import torch
import torch.fx
from torch import Tensor, nn

from normact.convert.report import ConversionReport, ConvertedNorm
from normact.data_flow import Consumer, FlowTracer, find_consumers, optional_arguments, training_mode
from normact.factory import NormActFactory
from normact.norm_act import NormAct
from normact.norms import BatchNorm
from normact.recognize import NormDescription, describe_norm, is_pass_through

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


def convert_norm(model: nn.Module, factory: NormActFactory) -> Tuple[nn.Module, ConversionReport]:
    """Replace every norm of a network, together with the activation that follows it, by factory(...) layers.

    * A norm layer that holds its activation (a torch norm with an `act` module) is replaced in place.
    * A norm followed by an activation: the data flow is found by torch.fx tracing. The layer takes the norm's
      place, and an activation module used nowhere else becomes an identity. Where the activation is a function
      or a module used at several places, the smallest module around the pair is rewritten as a torch.fx graph;
      the network itself is returned rewritten where that smallest module is the network. A graph is fixed: a
      switch that such a module reads in its forward no longer acts after the conversion.
    * A norm without an activation, or whose activation is unknown, becomes a norm with an affine (beta
      included), without PN.

    Norms and activations are recognized by class names and attributes. gamma, beta and, from batch norm to batch
    norm, the running statistics and momentum are carried over; eps and the rest are the factory's. The network
    is edited in place, after every layer was built: an error leaves it as it was. Optional arguments of the
    network's own forward are taken at their defaults.

    Args:
        model: any network.
        factory: makes the layers.

    Returns:
        The network, and a report with one row for each norm of the original.

    Raises:
        ValueError: a layer cannot be built (the message names the norm); norm "+ws", since convolutions are not
            replaced.
    """
    if factory.norm.endswith("+ws"):
        raise ValueError(
            f"norm {factory.norm!r}: convert_norm replaces norms and no convolutions; use {factory.norm[:-3]!r}, or "
            "build the network with factory.conv2d"
        )
    found = [(path, module, describe_norm(module)) for path, module in model.named_modules()]
    norms = [(path, module, description) for path, module, description in found if description is not None]
    consumers: Dict[nn.Module, Consumer] = {}
    failures: List[Tuple[str, str]] = []
    # A layer that holds its activation needs no tracing.
    if any(d.activation == "identity" and not d.kept_because for _, _, d in norms):
        consumers, failures = find_consumers(model)
    rewritable, refused = _find_rewrites(model, norms, consumers)
    like = next(model.parameters(), None)
    plans = [
        _plan(factory, path, module, d, consumers=consumers, refused=refused, like=like) for path, module, d in norms
    ]
    model = _edit(model, plans, rewritable)
    for path, error in failures:
        logger.warning("convert_norm: data flow of %s could not be traced: %s", path or "the network", error)
    rewritten = tuple(sorted({rewrite.enclosing for rewrite in rewritable}))
    return model, ConversionReport(tuple(plan.row for plan in plans), rewritten, tuple(failures))


def _find_rewrites(
    model: nn.Module, norms: List[Tuple[str, nn.Module, NormDescription]], consumers: Dict[nn.Module, Consumer]
) -> Tuple[List[_Rewrite], Dict[nn.Module, str]]:
    """The pairs that need a rewritten graph, and why some cannot have one."""
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
        reason = _why_not_rewritten(model.get_submodule(enclosing), enclosing, group)
        if reason:
            refused.update({rewrite.norm: reason for rewrite in group})
    return [rewrite for rewrite in rewrites if rewrite.norm not in refused], refused


def _is_exclusive(model: nn.Module, consumer: Consumer) -> bool:
    """Whether the activation is a module that this pair alone uses."""
    if consumer.module is None or consumer.module_calls != 1:
        return False
    prefix = consumer.traced + "." if consumer.traced else ""
    names = [name for name, module in model.named_modules(remove_duplicate=False) if module is consumer.module]
    return all(name.startswith(prefix) for name in names)


def _enclosing(model: nn.Module, norm_path: str, caller: str) -> str:
    """The smallest module around a pair that takes required arguments alone.

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


def _trace_enclosing(module: nn.Module, enclosing: str, group: List[_Rewrite]) -> torch.fx.Graph:
    """The module's graph, entering only the modules on the way to the pairs' norms and callers."""
    cut = len(enclosing) + 1 if enclosing else 0
    entered: Set[str] = set()
    for rewrite in group:
        for path in (rewrite.path[cut:].rpartition(".")[0], rewrite.caller[cut:]):
            parts = path.split(".") if path else []
            entered.update(".".join(parts[: i + 1]) for i in range(len(parts)))
    return FlowTracer(lambda _, path: path not in entered).trace(module)


def _why_not_rewritten(module: nn.Module, enclosing: str, group: List[_Rewrite]) -> str:
    """A graph is one fixed path through the code: refuse a module that has several."""
    optional = optional_arguments(module)
    if optional:
        return f"{enclosing or 'the network'} cannot be rewritten: it has optional arguments {', '.join(optional)}"
    codes = []
    for training in (True, False):
        with training_mode(module, training):
            try:
                codes.append(str(_trace_enclosing(module, enclosing, group)))
            # Whatever the module's own code raises when it meets a symbolic value.
            except Exception as error:
                return f"{enclosing or 'the network'} cannot be rewritten: {type(error).__name__}"
    if codes[0] != codes[1]:
        return f"{enclosing or 'the network'} cannot be rewritten: its code differs between training and evaluation"
    return ""


def _plan(
    factory: NormActFactory,
    path: str,
    old: nn.Module,
    description: NormDescription,
    *,
    consumers: Dict[nn.Module, Consumer],
    refused: Dict[nn.Module, str],
    like: Optional[Tensor],
) -> _Plan:
    original = type(old).__name__
    if description.kept_because:
        row = ConvertedNorm(path, original, None, None, False, description.kept_because)
        return _Plan(path, old, None, None, None, row)
    activation, reason, activation_module = _choose_activation(old, description, consumers, refused)
    try:
        layer = factory(description.channels, activation, bias=True if activation is None else None)
    except ValueError as error:
        raise ValueError(f"{path or 'the network'} ({original}): {error}") from error
    _carry_over(old, layer, like)
    new: nn.Module = layer
    if description.no_pair_because:
        # The activation and what stands before it stay as they were.
        kept = [child for name in ("drop", "act") for child_name, child in old.named_children() if child_name == name]
        new = nn.Sequential(layer, *kept)
    row = ConvertedNorm(path, original, factory.norm, activation, layer.proxy is not None, reason)
    return _Plan(path, old, new, layer, activation_module, row)


def _choose_activation(
    old: nn.Module,
    description: NormDescription,
    consumers: Dict[nn.Module, Consumer],
    refused: Dict[nn.Module, str],
) -> Tuple[Optional[str], str, Optional[nn.Module]]:
    """The activation that joins the layer, else the reason for none, and the module to be emptied."""
    if description.no_pair_because:
        return None, description.no_pair_because, None
    if description.activation != "identity":
        return description.activation, "", None
    consumer = consumers.get(old)
    if consumer is None:
        return None, "no traced data flow reaches it", None
    if old in refused:
        return None, refused[old], None
    return consumer.activation, consumer.reason, consumer.module


def _carry_over(old: nn.Module, layer: NormAct, like: Optional[Tensor]) -> None:
    """Copy gamma, beta and batch statistics, their device, type and mode, into the new layer.

    A norm that holds no tensor has the device and type of `like`, a parameter of the model.
    """
    weight, bias = getattr(old, "weight", None), getattr(old, "bias", None)
    own = next(iter([*old.parameters(), *(b for b in old.buffers() if b.is_floating_point())]), like)
    if own is not None:
        layer.to(device=own.device, dtype=own.dtype)
    with torch.no_grad():
        for value, target in ((weight, layer.weight), (bias, layer.bias)):
            if value is not None and target is not None:
                target.copy_(value)
                target.requires_grad_(value.requires_grad)
    if isinstance(layer.norm, BatchNorm) and isinstance(old, nn.modules.batchnorm._BatchNorm):
        if old.running_mean is not None and old.running_var is not None:
            layer.norm.running_mean.copy_(old.running_mean)
            layer.norm.running_var.copy_(old.running_var)
        if old.momentum is not None:
            layer.norm.momentum = old.momentum
    layer.train(old.training)


def _edit(model: nn.Module, plans: List[_Plan], rewrites: List[_Rewrite]) -> nn.Module:
    layers = {plan.old: plan.layer for plan in plans}
    through_graph = {rewrite.norm for rewrite in rewrites}
    for plan in plans:
        if plan.new is None:
            continue
        model = _replace(model, plan.old, plan.new)
        if plan.activation_module is not None and plan.old not in through_graph:
            model = _replace(model, plan.activation_module, nn.Identity())
    # Inner modules first: an outer graph then calls them as they are.
    for enclosing in sorted({rewrite.enclosing for rewrite in rewrites}, key=len, reverse=True):
        group = [rewrite for rewrite in rewrites if rewrite.enclosing == enclosing]
        module = model.get_submodule(enclosing)
        graph = _trace_enclosing(module, enclosing, group)
        _erase_activations(graph, dict(module.named_modules()), {layers[rewrite.norm] for rewrite in group})
        rewritten = torch.fx.GraphModule(module, graph, class_name=type(module).__name__)
        rewritten.training = module.training
        model = _replace(model, module, rewritten)
    return model


def _erase_activations(graph: torch.fx.Graph, modules: Dict[str, nn.Module], layers: Set[Optional[NormAct]]) -> None:
    for node in list(graph.nodes):
        if node.op != "call_module" or modules[node.target] not in layers:
            continue
        user = next(iter(node.users))
        while user.op == "call_module" and is_pass_through(modules[user.target]):
            user = next(iter(user.users))
        user.replace_all_uses_with(node)
        graph.erase_node(user)
    graph.lint()


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put one module in the place of another under all its names."""
    if model is old:
        return new
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children leaves out a module's second name
            if child is old:
                setattr(parent, name, new)
    return model
