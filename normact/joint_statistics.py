"""Proxy statistics of many layers at once, for devices on which every small operation costs."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence, Tuple

import torch
from torch import Tensor, nn

from normact.norm_act import NormAct
from normact.proxy import proxy_statistics


class JointProxyStatistics:
    """Computes the proxy statistics of several layers on one concatenated vector, and hands each layer its part.

    Formula: for all channels c of all layers, scale_c = r_c and shift_c = -m_c r_c with m, r = proxy_statistics(...),
    so that a layer's out = scale_c z + shift_c.

    ResNet-50 has 49 layers of about 40 operations on their (C,) vectors each, and 90 backward; here there are as many
    for all layers together, and a slice for each. Layers of different activations or settings make a vector each.

    It is a forward pre-hook: `module.register_forward_pre_hook(JointProxyStatistics(layers))` computes when `module` is
    called, which must be before its layers are. A layer uses what it was handed once; one that was handed nothing
    computes its own.

    Args:
        layers: those with Proxy Normalization are taken, the others left alone.
        dtype: of what is handed out, which should be that of the layers' inputs; the statistics are float32.
    """

    def __init__(self, layers: Sequence[NormAct], dtype: torch.dtype = torch.float32) -> None:
        self._dtype = dtype
        alike: Dict[Tuple[Any, ...], List[NormAct]] = {}
        for layer in layers:
            if layer.proxy is not None:
                own = id(layer) if isinstance(layer.phi, nn.Module) else 0  # it may have parameters of its own
                key = (own, layer.phi, layer.proxy, layer.bias is None, layer.proxy_beta is None)
                alike.setdefault(key, []).append(layer)
        self._vectors = list(alike.values())

    def __call__(self, module: nn.Module, inputs: Any) -> None:
        self.hand_out()

    def hand_out(self) -> None:
        """Compute with the parameters as they are, for one forward pass of each layer."""
        for layers in self._vectors:
            scale, shift = self._computed(layers)
            channels = [layer.channels for layer in layers]
            for layer, *own in zip(layers, scale.split(channels), shift.split(channels)):
                layer.handed_affine = (own[0], own[1])

    def _computed(self, layers: Sequence[NormAct]) -> Tuple[Tensor, Tensor]:
        first = layers[0]
        assert first.proxy is not None and first.phi is not None
        eps, method, num_samples = first.proxy
        gamma, *others = (
            None if getattr(first, name) is None else torch.cat([getattr(layer, name) for layer in layers])
            for name in ("weight", "bias", "proxy_beta", "proxy_gamma")
        )
        assert gamma is not None
        mean, inverse_std = proxy_statistics(first.phi, gamma, *others, eps=eps, method=method, num_samples=num_samples)
        return inverse_std.to(self._dtype), (-mean * inverse_std).to(self._dtype)
