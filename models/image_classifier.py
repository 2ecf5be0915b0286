"""What every network here shares: features -> global average pooling -> dropout -> linear classifier."""

from __future__ import annotations

from typing import Tuple

import torch
from torch import nn

from models.drop import Drop


class ImageClassifier(nn.Module):
    """A network whose `forward_features` gives a map (N, num_features, H', W').

    logits = classifier(dropout(mean over H', W' of forward_features(x)))

    A subclass sets up its own layers, gives `forward_features` and `initialize`, and calls `reset_classifier`
    at the end of its constructor.

    Args:
        num_features: channels of the map that `forward_features` gives.
        activation: name of the one that follows its norms; kept as an attribute.
        drop_rate: share of the pooled features that dropout sets to zero in training.

    Shape: (N, in_channels, H, W) -> (N, num_classes)
    """

    default_activation: str
    stem: nn.Sequential
    stages: nn.Sequential  # of stages, each an nn.Sequential of blocks: `stages.2.0` is a block
    dropout: nn.Module
    classifier: nn.Module

    def __init__(self, num_features: int, activation: str, drop_rate: float) -> None:
        super().__init__()
        self.num_features, self.activation = num_features, activation
        self.dropout = Drop(drop_rate, columns=num_features) if drop_rate > 0 else nn.Identity()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map of features before pooling, (N, in_channels, H, W) -> (N, num_features, H', W')."""
        raise NotImplementedError

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """Draw the initial weights of one convolution or linear layer; other modules are left as they are."""
        raise NotImplementedError

    def drops(self) -> Tuple[Drop, ...]:
        """Return the layers that are random in training, in their order in the network."""
        return tuple(module for module in self.modules() if isinstance(module, Drop))

    def forward_head(self, x: torch.Tensor) -> torch.Tensor:
        """Logits from the map of features, (N, num_features, H', W') -> (N, num_classes)."""
        return self.classifier(self.dropout(x.mean((2, 3))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the linear layer; nn.Identity where num_classes is 0. Under the name that timm's networks give it."""
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a randomly initialized one, of the device and type of the network's parameters.

        Args:
            num_classes: size of the output; 0 leaves the pooled features, (N, num_features), as the output.

        Raises:
            ValueError: a negative number of classes.
        """
        if num_classes < 0:
            raise ValueError(f"num_classes {num_classes} is too small; it must be 0 or more")
        self.num_classes = num_classes
        if num_classes == 0:
            self.classifier = nn.Identity()
            return
        like = next(self.parameters())
        self.classifier = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        self.initialize(self.classifier)
