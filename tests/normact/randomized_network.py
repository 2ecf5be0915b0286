"""Networks whose norms do something: as built, their affines and statistics are the identity's."""

from __future__ import annotations

from torch import nn


def randomized(model: nn.Module) -> nn.Module:
    """Return the network in float64, with random affines, biases and running statistics."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and value.dim() == 1:
            low = 0.5 if name.endswith(("weight", "var")) else -0.5
            nn.init.uniform_(value.data, low, low + 1)
    return model.double()
