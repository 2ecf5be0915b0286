"""The names by which code knows what torch's norms are."""

from __future__ import annotations

from torch import nn

from normact.norm import Norm


class TorchNormNames(nn.Module):
    """What a layer answers where code asks it as it would ask a norm of torch.

    Only what means the same. Running statistics are not among it, though batch norm here has them in `norm`: code that
    takes them, as to merge a batch norm with a convolution, would leave out the layer's activation.
    """

    channels: int
    norm: Norm

    @property
    def num_features(self) -> int:
        """C, as of a batch or instance norm."""
        return self.channels

    @property
    def num_channels(self) -> int:
        """C, as of a group norm."""
        return self.channels

    @property
    def affine(self) -> bool:
        """True: there always is a gamma."""
        return True

    @property
    def eps(self) -> float:
        """What the norm adds to its variance; AttributeError where there is none."""
        return float(self.norm.eps)  # type: ignore[arg-type]

    @property
    def num_groups(self) -> int:
        """Groups of channels; AttributeError for a norm that has none."""
        return int(self.norm.num_groups)  # type: ignore[arg-type]
