"""Several micro steps as one large operation, where that gives the same result.

torch.func.vmap maps the model over the micro steps of a device iteration: each still sees its own micro batch alone,
but the processor gets few large operations instead of many small ones. A model qualifies if nothing in it is carried
from one micro step to the next: no buffer changes, inputs left alone, float32 accumulators. The first two steps run
both ways; only if they agree are later ones folded, and what vmap cannot map (random numbers too) never is.
"""

from __future__ import annotations

from typing import Any, List, Sequence

import torch

from .._logging import logger
from .batching import BatchForm, Step

MAX_ROWS = 64  # of all folded micro batches together: more gains nothing and costs memory
MAX_BYTES = 16 << 20  # of their inputs


class Folding:
    """Decides how many micro steps run together; 1: each on its own."""

    def __init__(self, form: BatchForm, is_allowed: bool) -> None:
        self._form = form
        self._is_allowed = is_allowed
        self._is_verified = False

    def size(self, inputs: Sequence[torch.Tensor], steps: int) -> int:
        """Return how many of so many micro steps to run together; 1 until both ways were seen to agree."""
        return min(steps, self._limit(inputs)) if self._is_allowed and self._is_verified else 1

    def needs_verification(self, inputs: Sequence[torch.Tensor], steps: int) -> bool:
        """Whether the next micro steps have to run both ways."""
        return self._is_allowed and not self._is_verified and min(steps, self._limit(inputs)) > 1

    def _limit(self, inputs: Sequence[torch.Tensor]) -> int:
        batched = [tensor for tensor in inputs if tensor.dim() > 0]
        if not batched:
            return 1
        rows = max(self._form.micro_batch_rows(tensor) for tensor in batched)
        size = max(
            self._form.micro_batch_rows(tensor) * tensor[0].numel() * tensor.element_size() for tensor in batched
        )
        return max(1, min(MAX_ROWS // max(rows, 1), MAX_BYTES // max(size, 1)))

    def accept(self) -> None:
        """Both ways agree."""
        self._is_verified = True

    def reject(self, reason: Any) -> None:
        """Run every micro step on its own from now on."""
        logger.debug("micro steps run one by one: %s", reason)
        self._is_allowed = False


def agree(ours: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> bool:
    """Whether two ways of computing the same differ by rounding at most."""
    if len(ours) != len(reference):
        return False
    for value, expected in zip(ours, reference):
        if value.shape != expected.shape or value.dtype != expected.dtype:
            return False
        if not torch.allclose(value.double(), expected.double(), rtol=1e-3, atol=1e-5, equal_nan=True):
            return False
    return True


def stacked(form: BatchForm, inputs: Sequence[torch.Tensor], steps: Sequence[Step]) -> List[torch.Tensor]:
    """For each input its micro batches of these steps, with a new first dimension."""
    return [torch.stack([form.micro_batch(tensor, *step) for step in steps]) for tensor in inputs]
