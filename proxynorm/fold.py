"""Fold all that fixed weights make constant: an evaluation copy of a network with less to compute."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

from proxynorm.data_flow import FlowTracer, optional_arguments, training_mode
from proxynorm.fold_report import FoldedLayer, FoldReport
from proxynorm.folded_layers import ChannelAffine, FoldedNormAct, folded_conv, folded_linear, pads_with_zeros
from proxynorm.norm_act import NormAct, find_kernels
from proxynorm.norms import BatchNorm, EvoNormS0, GroupNorm, IdentityNorm
from proxynorm.proxy import proxy_statistics
from proxynorm.weight_standardization import WeightStandardizedConv2d

_CONV2D = (nn.Conv2d, WeightStandardizedConv2d)
_CONVS = (nn.Conv1d, nn.Conv3d, *_CONV2D)
_TORCH_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Nothing in evaluation, and unlike batch norm nothing that evaluation makes constant.
_ABSENT = (nn.Identity, nn.modules.dropout._DropoutNd)
# ReLU and ReLU6 as bounds: what they compute is min(max(x, 0), upper).
_UPPER_BOUNDS: Dict[Any, Optional[float]] = {"relu": None, "relu6": 6.0}


def fold_for_inference(model: nn.Module) -> Tuple[torch.fx.GraphModule, FoldReport]:
    """An evaluation copy of a network in which everything that its weights fix is a constant.

    * Weight standardization becomes plain weights.
    * Batch norm's running statistics and the affine (that of norm "none" too) go into the convolution in front, where
      its output goes nowhere else; elsewhere they stay, as one multiply-add.
    * Proxy statistics are computed once. (z - m_c) r_c then goes, by the first of these that applies,
      1. into all convolutions and linear layers that take it, if none of them pads with zeros;
      2. as two constants into the fused operator of the norm, which applies them at no cost;
      3. with ReLU or ReLU6 and r_c > 0, into the affine and the bounds:
         (max(x, 0) - m) r = max(r x - m r, -m r), which costs what ReLU costs and needs nothing of what follows;
      4. into all convolutions and linear layers that take it, zero-padded ones included: there the padding stands for
         m_c before the constants moved, and the folded convolution adds what is missing (see BorderedConv2d);
      5. nowhere: it stays as a multiply-add with constants.
      Average pooling, dropout, flattening and, where all scales are positive, max-pooling may lie in between.
    * EvoNorm-S0's affine goes by rule 1, or stays.

    All constants are computed in float64 and stored in the type of the weights. The original is left as it was. The
    copy takes no gradient and has no training mode of its own: dropout is gone and statistics are frozen. Optional
    arguments of the network's forward are fixed at their defaults.

    Args:
        model: any network that torch.fx can trace; layers other than NormAct and torch's batch norms are copied.

    Returns:
        The copy, whose layers keep their names, and a report with one row for each NormAct and batch norm.

    Raises:
        ValueError: the network cannot be traced.

    Source: the identities are those of Labatie et al. 2021, Eq. 7, with statistics that no longer change.
    """
    graph = _trace(model)
    modules: Dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    _erase_absent(graph, modules)
    with torch.no_grad():
        folder = _Folder(modules)
        rows = [row for row in map(folder.fold_norm, graph.nodes) if row is not None]
        standardized = folder.fold_convs(graph)
    folded = _build(model, graph, modules, folder.new)
    return folded, FoldReport(tuple(rows), standardized)


class _FoldTracer(FlowTracer):
    """Keeps a weight-standardized convolution as one call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, WeightStandardizedConv2d) or super().is_leaf_module(m, module_qualified_name)


class _Takers(NamedTuple):
    """The convolutions and linear layers that take a layer's output, or the reason why it goes elsewhere."""

    nodes: Tuple[Node, ...]
    reason: str = ""
    through_max: bool = False
    bordered: bool = False


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
                "a forward without branches on values or shapes; use the network unfolded, or fold its parts"
            ) from error


def _erase_absent(graph: torch.fx.Graph, modules: Dict[str, nn.Module]) -> None:
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(modules[node.target], _ABSENT):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)


class _Folder:
    """Collects what each convolution is to take, layer by layer, and the new modules of the calls in a graph."""

    def __init__(self, modules: Dict[str, nn.Module]) -> None:
        self.modules = modules
        self.new: Dict[Node, nn.Module] = {}
        self.before: Dict[Node, ChannelAffine] = {}
        self.after: Dict[Node, ChannelAffine] = {}

    def module(self, node: Node) -> Optional[nn.Module]:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def fold_norm(self, node: Node) -> Optional[FoldedLayer]:
        """Fold one norm+activation layer or batch norm; None for any other node."""
        module = self.module(node)
        if isinstance(module, NormAct):
            return self._fold(node, module, module.norm, type(module.norm).__name__)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return self._fold(node, module, module, type(module).__name__)
        return None

    def _fold(self, node: Node, layer: nn.Module, norm: nn.Module, kind: str) -> FoldedLayer:
        path, reason = str(node.target), _why_not_folded(layer, norm)
        if reason:
            return FoldedLayer(path, kind, note=reason)
        weight: Tensor = layer.weight if layer.weight is not None else torch.ones_like(norm.running_mean)
        input_affine = _constant_affine(norm, weight, layer.bias)
        row = FoldedLayer(path, kind)
        constants: Dict[str, Tensor] = {}
        if isinstance(norm, EvoNormS0):
            row = self._place_affine(node, row, ChannelAffine(weight.double(), _double(layer.bias, weight)))
            if not row.output_into:
                return row
        elif input_affine is not None:
            constants = dict(weight=input_affine.scale, bias=input_affine.shift)
        else:
            constants = dict(weight=weight.double(), bias=_double(layer.bias, weight))
        activation = layer._activation if isinstance(layer, NormAct) and not isinstance(norm, EvoNormS0) else None
        if isinstance(layer, NormAct) and layer.proxy is not None:
            row, activation = self._place_proxy(node, row, layer, constants)
        if input_affine is not None:
            conv = self._conv_in_front(node)
            if conv is not None:
                self.after[conv] = ChannelAffine(constants.pop("weight"), constants.pop("bias"))
                row = replace(row, norm_into=str(conv.target))
        if not constants and activation is None and input_affine is not None:
            self.new[node] = nn.Identity()
            return row
        kept = None if input_affine is not None else copy.deepcopy(norm)
        kernel = layer.kernel if isinstance(layer, NormAct) else "reference"
        channels = weight.shape[0]
        self.new[node] = FoldedNormAct(channels, kept, activation, constants, kernel=kernel, dtype=weight.dtype)
        return row

    def _place_proxy(
        self, node: Node, row: FoldedLayer, layer: NormAct, constants: Dict[str, Tensor]
    ) -> Tuple[FoldedLayer, Optional[Activation]]:
        """Find the place of (z - mean) inverse_std by the rules of fold_for_inference; edits the layer's constants."""
        assert layer.proxy is not None
        activation = layer._activation
        parameters = (layer.weight, layer.bias, layer.proxy_beta, layer.proxy_gamma)
        eps, method, num_samples = layer.proxy
        mean, inverse_std = proxy_statistics(
            activation, *(None if p is None else p.double() for p in parameters),
            eps=eps, method=method, num_samples=num_samples,
        )  # fmt: skip
        affine = ChannelAffine(inverse_std, -mean * inverse_std)
        takers = self._find_takers(node, affine)
        if not takers.reason and not takers.bordered:
            return self._move(row, takers, affine), activation
        fused = _is_fused(layer)
        if not fused and activation in _UPPER_BOUNDS:
            moved = ChannelAffine(constants["weight"], constants["bias"]).then(affine)
            upper = _UPPER_BOUNDS[activation]
            constants.update(weight=moved.scale, bias=moved.shift, lower=affine.shift)
            if upper is not None:
                constants["upper"] = upper * affine.scale + affine.shift
            return replace(row, output="bounds"), None
        if not fused and not takers.reason:
            return self._move(row, takers, affine), activation
        constants.update(mean=mean, inverse_std=inverse_std)
        note = takers.reason or "the fused operator applies them at no cost"
        return replace(row, output="constants", note=note), activation

    def _place_affine(self, node: Node, row: FoldedLayer, affine: ChannelAffine) -> FoldedLayer:
        takers = self._find_takers(node, affine)
        if takers.bordered:
            return replace(row, note="its affine stays in front of a zero-padded convolution")
        return replace(row, note=takers.reason) if takers.reason else self._move(row, takers, affine)

    def _move(self, row: FoldedLayer, takers: Tuple[Node, ...], affine: ChannelAffine) -> FoldedLayer:
        for taker in takers:
            self.before[taker] = affine
        return replace(row, output="moved", output_into=tuple(str(taker.target) for taker in takers))
