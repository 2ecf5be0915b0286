"""What becomes of images in random nets, layer by layer: power, effective channels, channel-wise nonlinearity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, List, NamedTuple

import torch
from torch import Tensor

from analysis.normalized import find_normalizations
from analysis.power import PowerStatistics
from models.random_net import RandomLayer, RandomNetShape
from normact import NormActFactory
from normact.activations import activation_function
from normact.channels import affine

_CONV_VALUES = 2**24  # of a convolution's output at a time: 64 MB, and as much of temporaries
_CHANNELS_AT_A_TIME = 64  # in float64


class LayerValues(NamedTuple):
    """What is known at layer l: the layer, y^l (after the norm), and y~^l = gamma y^l + beta."""

    layer: RandomLayer
    normalized: Tensor
    affine: Tensor


@dataclass
class LayerMeasures:
    """The numbers of one layer.

    Args:
        power: [P1, P2, P3, P4], means over channels.
        effective_channels: (sum_c P_c)^2 / (C sum_c P_c^2).
        residual_variance: see `residual_variance`.
    """

    power: List[float]
    effective_channels: float
    residual_variance: float


@torch.no_grad()
def propagate(shape: RandomNetShape, norm_act: NormActFactory, images: Tensor, seed: int) -> Iterator[LayerValues]:
    """Yield the layers of one random net, one after another; batch norm takes its statistics over all images.

    Only one layer's weights and activations are there at a time.

    Args:
        shape: of the net.
        norm_act: makes the norms.
        images: (N, in_channels, H, W).
        seed: of the weights.
    """
    z = images
    for number in range(1, shape.depth + 1):
        layer = RandomLayer(shape, norm_act, number, seed).train()
        per_image = shape.width * images.shape[2] * images.shape[3]
        x = torch.cat([layer.conv(part) for part in z.split(max(1, _CONV_VALUES // per_image))])
        y = find_normalizations(layer.norm_act)[0][""](x)
        yield LayerValues(layer, y, affine(y, layer.norm_act.weight, layer.norm_act.bias))
        if number < shape.depth:
            z = layer.norm_act(x)


def measure_layer(values: LayerValues) -> LayerMeasures:
    """Return the numbers of one layer."""
    statistics = PowerStatistics(values.normalized.shape[1])
    statistics.add(values.normalized)
    return LayerMeasures(
        power=statistics.layer_power(),
        effective_channels=statistics.effective_channels(),
        residual_variance=residual_variance(values),
    )


def residual_variance(values: LayerValues) -> float:
    """Return how nonlinear the activation is on the values that its channels really take; 0 for a linear one.

    Formula: mean over channels of min over (a, b) of mean((phi(y~) - a y~ - b)^2) / Var(y~), over images and positions:
    Var(phi) / Var(y~) - Cov(phi, y~)^2 / Var(y~)^2. A ReLU on a centred Gaussian gives 1/4 - 1/(2 pi) = 0.091.
    A channel that is constant counts as 0.
    """
    total = 0.0
    activation = activation_function(values.layer.norm_act.activation or "identity")
    for part in values.affine.split(_CHANNELS_AT_A_TIME, dim=1):
        x = part.transpose(0, 1).flatten(1).double()
        output = activation(x)
        x, output = x - x.mean(dim=1, keepdim=True), output - output.mean(dim=1, keepdim=True)
        variance = (x**2).mean(dim=1)
        slope = (x * output).mean(dim=1) / variance
        residual = ((output - slope.unsqueeze(1) * x) ** 2).mean(dim=1) / variance
        total += float(torch.where(variance > 0, residual, torch.zeros_like(residual)).sum())
    return total / values.affine.shape[1]
