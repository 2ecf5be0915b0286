"""The random nets of the paper's analysis: L layers of convolution, norm, affine and activation, never trained.

    x^l = omega^l * z^(l-1),   y^l = Norm(x^l),   z^l = phi(gamma^l y^l + beta^l)   (and PN, where the norm_act has it)

    omega^l ~ N(0, 1 / fan_in),   gamma^l ~ N(gamma_mean, gamma_std^2),   beta^l ~ N(0, beta_std^2),   independent,
    stride 1, periodic boundaries, constant width.

Each layer draws from its own generator, keyed on (seed, layer): a layer can be made, used and dropped before the next,
since all of them together would take 755 MB at width 1024 and depth 20.

Source: Labatie et al. 2021, section 4, Definition 1; Figure 2 (top row) for the distributions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, List

import torch
from torch import nn

if TYPE_CHECKING:
    from normact import NormActFactory

_LARGEST_DEPTH = 10_000


@dataclass(frozen=True)
class RandomNetShape:
    """The sizes and distributions of a random net.

    Args:
        width: C, channels of every layer.
        depth: L.
        kernel_size: K.
        in_channels: channels of the image.
        activation: phi, a name known to normact.
        gamma_mean: mean of gamma's normal distribution.
        gamma_std: its standard deviation.
        beta_std: standard deviation of beta, whose mean is 0.
    """

    width: int = 128
    depth: int = 20
    kernel_size: int = 3
    in_channels: int = 3
    activation: str = "relu"
    gamma_mean: float = 1.0
    gamma_std: float = 0.2
    beta_std: float = 0.2

    @property
    def rho(self) -> float:
        """gamma^2 / (gamma^2 + beta^2) of the root mean squares: the factor per layer in the bound of Theorem 1."""
        gamma_square = self.gamma_mean**2 + self.gamma_std**2
        return gamma_square / (gamma_square + self.beta_std**2)

    def bound(self, layer: int) -> float:
        """rho^(l-1): the most that is left of P - P1 at layer l = 1, 2, ... of a layer-normalized net [Theorem 1]."""
        return self.rho ** (layer - 1)


class RandomLayer(nn.Module):
    """One layer of a random net: `conv`, then `norm_act`.

    Args:
        shape: of the net.
        norm_act: makes the norm with its activation, and the convolution in front of it.
        layer: l = 1, 2, ...
        seed: of the net.

    Shape: (N, in_channels for layer 1 and width for the others, H, W) -> (N, width, H, W)

    Raises:
        ValueError: a layer outside 1..10000.
    """

    def __init__(self, shape: RandomNetShape, norm_act: NormActFactory, layer: int, seed: int) -> None:
        super().__init__()
        if not 1 <= layer <= _LARGEST_DEPTH:
            raise ValueError(f"layer {layer} is outside 1..{_LARGEST_DEPTH}")
        in_channels = shape.in_channels if layer == 1 else shape.width
        self.conv = norm_act.conv2d(
            in_channels, shape.width, shape.kernel_size, padding="same", padding_mode="circular", bias=False
        )
        self.norm_act = norm_act(shape.width, shape.activation, bias=True)
        generator = torch.Generator().manual_seed(seed * (_LARGEST_DEPTH + 1) + layer)
        with torch.no_grad():
            self.conv.weight.normal_(0.0, self.conv.weight[0].numel() ** -0.5, generator=generator)
            self.norm_act.weight.normal_(shape.gamma_mean, shape.gamma_std, generator=generator)
            assert self.norm_act.bias is not None
            self.norm_act.bias.normal_(0.0, shape.beta_std, generator=generator)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.norm_act(self.conv(z))


class RandomNet(nn.Sequential):
    """All layers of a random net at once.

    Args:
        shape: of the net.
        norm_act: makes every norm with its activation, and the convolutions in front of a norm.
        seed: of the net.

    Shape: (N, in_channels, H, W) -> (N, width, H, W)
    """

    def __init__(self, shape: RandomNetShape, norm_act: NormActFactory, seed: int) -> None:
        super().__init__(*(RandomLayer(shape, norm_act, layer, seed) for layer in range(1, shape.depth + 1)))

    def layers(self) -> List[RandomLayer]:
        """Return the layers, the first next to the image."""
        return [layer for layer in self if isinstance(layer, RandomLayer)]
