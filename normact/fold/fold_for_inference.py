"""Fold all that fixed weights make constant: an evaluation copy of a network with less to compute."""

from __future__ import annotations

import copy
import functools
import inspect
from dataclasses import replace
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx import Node

from normact import kernels
from normact.batch_norm import running_affine
from normact.fold.flow import Takers, conv_in_front, find_takers, has_hooks, module_of
from normact.fold.layers import ABSENT, ChannelAffine, FoldedNormAct, folded_conv, folded_linear
from normact.fold.report import FoldedLayer, FoldReport
from normact.norm_act import NormAct
from normact.proxy import proxy_statistics
from normact.tracing import FlowTracer, optional_arguments, training_mode
from normact.weight_standardization import WeightStandardizedConv2d

_TORCH_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# What ReLU and ReLU6 are: min(max(x, 0), upper bound).
_UPPER_BOUNDS: Dict[str, Optional[float]] = {"relu": None, "relu6": 6.0}


def fold_for_inference(model: nn.Module) -> Tuple[torch.fx.GraphModule, FoldReport]:
    """Return an evaluation copy of a network in which everything that its weights fix is a constant.

    * Weight standardization becomes plain weights.
    * Batch norm's running statistics and the affine (that of norm "none" too) go into the convolution in front, where
      its output goes nowhere else; elsewhere they stay, as one multiply-add.
    * Proxy statistics are computed once. (z - m_c) r_c then goes, by the first of these that applies,
      1. into all convolutions and linear layers that take it, if none of them pads with zeros;
      2. as two constants into the fused operator of the norm, which applies them at no cost;
      3. with ReLU and ReLU6 into the affine and the bounds, (max(x, 0) - m) r = max(r x - m r, -m r), which costs what
         ReLU costs and needs nothing of what follows;
      4. into all convolutions and linear layers that take it, zero-padded ones included: a padded zero means z = m_c,
         and the folded convolution leaves the constants out where its taps see padding (see BorderedConv2d);
      5. nowhere: it stays as a multiply-add with constants.
      Average pooling, flattening and, where all scales are positive, max-pooling may lie in between.
    * EvoNorm-S0's affine goes by rule 1, or stays.

    All constants are computed in float64 and stored in the type of the weights. The original is left as it was. The
    copy takes no gradient and knows no training: dropout is gone and statistics are frozen. Optional arguments of the
    network's forward are fixed at their defaults. A module with hooks is copied as it is.

    Args:
        model: any network that torch.fx can trace; layers other than NormAct and torch's batch norms are copied.

    Returns:
        The copy, whose layers keep their names, and a report with one row for each NormAct and batch norm.

    Raises:
        ValueError: the network cannot be traced.

    Source: the identities follow from Labatie et al. 2021, Eq. 7, with constants in the place of its statistics.
    """
    graph = _trace(model)
    modules: Dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    for node in list(graph.nodes):
        module = module_of(modules, node)
        if isinstance(module, ABSENT) and not has_hooks(module):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    folder = _Folder(modules)
    with torch.no_grad():
        rows = [row for row in map(folder.fold_norm, graph.nodes) if row is not None]
        standardized = [str(node.target) for node in graph.nodes if folder.fold_taker(node)]
    return _build(model, graph, folder), FoldReport(tuple(rows), tuple(standardized))


class _FoldTracer(FlowTracer):
    """Keeps a weight-standardized convolution as one call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, WeightStandardizedConv2d) or super().is_leaf_module(m, module_qualified_name)


def _trace(model: nn.Module) -> torch.fx.Graph:
    parameters = inspect.signature(model.forward).parameters
    defaults = {
        name: parameters[name].default
        for name in optional_arguments(model)
        if parameters[name].kind is not inspect.Parameter.VAR_KEYWORD
    }
    with training_mode(model, False):
        try:
            return _FoldTracer().trace(model, defaults or None)
        # Whatever the network's own code raises when it meets a symbolic value.
        except Exception as error:
            raise ValueError(
                f"{type(model).__name__} cannot be traced by torch.fx ({type(error).__name__}: {error}); folding needs "
                "a forward that does not branch on values or shapes; fold the parts that do not, or use the network "
                "unfolded"
            ) from error


class _Folder:
    """The new modules of the calls in a graph, and what its convolutions and linear layers are to take over.

    Norms come first: each says what goes before and after which convolution. Then each convolution is built once.
    """

    def __init__(self, modules: Dict[str, nn.Module]) -> None:
        self.modules = modules
        self.new: Dict[Node, nn.Module] = {}
        self._before: Dict[Node, ChannelAffine] = {}
        self._after: Dict[Node, ChannelAffine] = {}

    def fold_norm(self, node: Node) -> Optional[FoldedLayer]:
        """Fold a norm+activation layer or batch norm; None for any other node."""
        layer = module_of(self.modules, node)
        if not isinstance(layer, (NormAct, nn.modules.batchnorm._BatchNorm)):
            return None
        norm = layer.norm if isinstance(layer, NormAct) else layer
        row = FoldedLayer(str(node.target), type(norm).__name__)
        reason = _why_not_folded(layer, norm)
        if reason:
            return replace(row, note=reason)
        if isinstance(layer, NormAct) and norm.ends_with_affine:
            return self._fold_last_affine(node, layer, row)
        constants, is_constant = _affine_constants(layer, norm)
        channels, dtype = constants["weight"].shape[0], _like(layer).dtype
        activation = layer.phi if isinstance(layer, NormAct) else None
        if isinstance(layer, NormAct) and layer.proxy is not None:
            row = self._place_proxy(node, row, layer, constants)
            activation = None if row.output == "bounds" else activation
        conv = conv_in_front(node, self.modules) if is_constant else None
        if conv is not None:
            self._after[conv] = ChannelAffine(constants.pop("weight"), constants.pop("bias"))
            row = replace(row, norm_into=str(conv.target))
        kept = copy.deepcopy(layer.norm) if isinstance(layer, NormAct) and not is_constant else None
        kernel = layer.kernel if isinstance(layer, NormAct) else "reference"
        self.new[node] = FoldedNormAct(channels, kept, activation, constants, kernel=kernel, dtype=dtype)
        return row

    def fold_taker(self, node: Node) -> bool:
        """Build what a convolution or linear layer becomes; whether it was weight-standardized."""
        module, before, after = module_of(self.modules, node), self._before.get(node), self._after.get(node)
        standardized = type(module) is WeightStandardizedConv2d and not has_hooks(module)
        if isinstance(module, nn.Linear) and before is not None:
            self.new[node] = folded_linear(module, before)
        elif module is not None and (standardized or before is not None or after is not None):
            self.new[node] = folded_conv(module, before, after)
        return standardized

    def _fold_last_affine(self, node: Node, layer: NormAct, row: FoldedLayer) -> FoldedLayer:
        bias = torch.zeros_like(layer.weight) if layer.bias is None else layer.bias
        affine = ChannelAffine(layer.weight.double(), bias.double())
        takers = find_takers(node, affine, self.modules)
        if takers.reason or takers.bordered:
            return replace(row, note=takers.reason or "a zero-padded convolution follows: its affine stays")
        norm, dtype = copy.deepcopy(layer.norm), layer.weight.dtype
        self.new[node] = FoldedNormAct(layer.channels, norm, None, {}, kernel="reference", dtype=dtype)
        return self._move(row, takers, affine)

    def _place_proxy(self, node: Node, row: FoldedLayer, layer: NormAct, constants: Dict[str, Tensor]) -> FoldedLayer:
        """Give (z - mean) inverse_std its place, by the rules of fold_for_inference; edits the layer's constants."""
        assert layer.proxy is not None and layer.phi is not None
        bias, proxy_beta, proxy_gamma = (
            None if value is None else value.double() for value in (layer.bias, layer.proxy_beta, layer.proxy_gamma)
        )
        eps, method, num_samples = layer.proxy
        mean, inverse_std = proxy_statistics(
            layer.phi, layer.weight.double(), bias, proxy_beta, proxy_gamma,
            eps=eps, method=method, num_samples=num_samples,
        )  # fmt: skip
        affine = ChannelAffine(inverse_std, -mean * inverse_std)
        takers = find_takers(node, affine, self.modules)
        if not takers.reason and not takers.bordered:
            return self._move(row, takers, affine)
        if _is_fused(layer):
            constants.update(mean=mean, inverse_std=inverse_std)
            return replace(row, output="fused", note=takers.reason or "a zero-padded convolution follows")
        if isinstance(layer.phi, str) and layer.phi in _UPPER_BOUNDS:
            upper = _UPPER_BOUNDS[layer.phi]
            moved = ChannelAffine(constants["weight"], constants["bias"]).then(affine)
            constants.update(weight=moved.scale, bias=moved.shift, lower=affine.shift)
            if upper is not None:
                constants["upper"] = upper * affine.scale + affine.shift
            return replace(row, output="bounds", note=takers.reason or "a zero-padded convolution follows")
        if not takers.reason:
            return self._move(row, takers, affine)
        constants.update(mean=mean, inverse_std=inverse_std)
        return replace(row, output="multiply-add", note=takers.reason)

    def _move(self, row: FoldedLayer, takers: Takers, affine: ChannelAffine) -> FoldedLayer:
        self._before.update({taker: affine for taker in takers.nodes})
        return replace(row, output="moved", output_into=tuple(str(taker.target) for taker in takers.nodes))


def _why_not_folded(layer: nn.Module, norm: Any) -> str:
    if has_hooks(layer):
        return "copied as it is: it has hooks"
    if type(layer) not in (NormAct, *_TORCH_BATCH_NORMS):
        return f"copied as it is: {type(layer).__name__} may do more than the class that it extends"
    if isinstance(norm, _TORCH_BATCH_NORMS) and norm.running_mean is None:
        return "copied as it is: it has no running statistics"
    has_own_nonlinearity = isinstance(layer, NormAct) and norm.own_activation is not None and not norm.ends_with_affine
    return "copied as it is: nothing in it is constant" if has_own_nonlinearity else ""


def _affine_constants(layer: Any, norm: Any) -> Tuple[Dict[str, Tensor], bool]:
    """Weight and bias of a layer, and whether they are all that it does before its activation."""
    like = _like(layer)
    weight = torch.ones_like(like) if layer.weight is None else layer.weight
    bias = torch.zeros_like(like) if layer.bias is None else layer.bias
    weight, bias = weight.double(), bias.double()
    constant = norm.evaluation_affine() if isinstance(layer, NormAct) else running_affine(norm)
    if constant is not None:
        scale, shift = (value.to(weight.device) for value in constant)
        weight, bias = weight * scale, bias + weight * shift
    return {"weight": weight, "bias": bias}, constant is not None


def _like(layer: Any) -> Tensor:
    """Return a tensor of the layer's channels, type and device."""
    return layer.running_var if layer.weight is None else layer.weight


def _is_fused(layer: NormAct) -> bool:
    """Whether the layer runs as a fused operator, on an input of the type and device of its weights."""
    groups = layer.norm.groups()
    if groups is None or layer.kernel == "reference" or not isinstance(layer.phi, str):
        return False
    sample = layer.weight.reshape(1, -1)
    return kernels.why_not_fused(sample, groups.num_groups, groups.grouping, layer.phi) is None


def _build(model: nn.Module, graph: torch.fx.Graph, folder: _Folder) -> torch.fx.GraphModule:
    """Return the graph as a module that shares nothing with the original."""
    calls: Dict[str, List[Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
    parts: Dict[str, Any] = {}
    for path, nodes in calls.items():
        original = copy.deepcopy(folder.modules[path])
        for index, node in enumerate(nodes):
            # A module called at several places is folded differently at each.
            if index > 0 and any(call in folder.new for call in nodes):
                node.target = f"{path}_call{index + 1}"
            parts[str(node.target)] = folder.new.get(node, original)
    for node in graph.nodes:
        if node.op == "get_attr":
            owner = str(node.target).rpartition(".")[0]
            value = functools.reduce(getattr, str(node.target).split("."), model)
            # A new layer must not get its original's tensors back.
            node.target = str(node.target).replace(".", "_") + "_tensor" if owner in calls else node.target
            parts.setdefault(str(node.target), copy.deepcopy(value))
    folded = torch.fx.GraphModule(parts, graph, class_name=type(model).__name__)
    return folded.eval().requires_grad_(False)
