"""What a normalization is to the rest: a module without an affine of its own, and answers about it."""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple

from torch import Tensor, nn


class Groups(NamedTuple):
    """What the fused kernels need to know of a norm that they compute."""

    num_groups: int
    grouping: str
    eps: float


class Norm(nn.Module):
    """A normalization: norm(x, weight, bias) = weight_c Norm(x) + bias_c, and Norm(x) without them.

    The layer, its folding and the analysis ask a norm what it is by these, and by nothing else; so a new norm is a
    class that overrides what differs, and a row in normact.factory.

    Attributes:
        channels: C.
        own_activation: name of the nonlinearity that it brings in place of the network's; None: it brings none.
        ends_with_affine: weight and bias are the last that it does, so that they can move on to what follows.
        not_normalized_because: why Norm(x) is not a normalized value as the power decomposition has it; empty: it is.

    Shape:
        (N, C, *spatial) -> same.
    """

    channels: int
    own_activation: Optional[str] = None
    ends_with_affine = False
    not_normalized_because = ""

    def forward(self, x: Tensor, weight: Optional[Tensor] = None, bias: Optional[Tensor] = None) -> Tensor:
        raise NotImplementedError

    def normalized(self, x: Tensor) -> Tensor:
        """Norm(x), leaving running statistics alone."""
        return self(x)

    def groups(self) -> Optional[Groups]:
        """Return the settings of the fused kernels, where these compute this norm."""
        return None

    def evaluation_affine(self) -> Optional[Tuple[Tensor, Tensor]]:
        """(scale, shift), each (C,) float64, where evaluation gives scale_c x + shift_c; None where it depends on x."""
        return None
