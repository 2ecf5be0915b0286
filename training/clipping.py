"""Gradients of limited length."""

from __future__ import annotations

from typing import Iterable

import torch
from torch import Tensor, nn


def clip_gradients(parameters: Iterable[nn.Parameter], clip_norm: float) -> Tensor:
    """Scale all gradients by min(1, clip_norm / (n + 1e-6)), n the 2-norm over all of them together; return n.

    To be called once for each weight update, on the gradient of the mean loss over the global batch: summed over
    micro-batches and averaged over replicas, where it is the same in all of them, and so is what is left of it.

    Args:
        parameters: those without a gradient are skipped.
        clip_norm: the largest norm, > 0.

    Shape: -> (), float32, on the gradients' device; nothing is waited for.

    Source: Pascanu et al., "On the difficulty of training recurrent neural networks", 2013, algorithm 1.
    """
    return torch.nn.utils.clip_grad_norm_(list(parameters), clip_norm)
