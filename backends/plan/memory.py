"""Bytes that each pipeline stage needs on its IPU."""

from __future__ import annotations

from dataclasses import dataclass, fields

from backends.plan.constants import (
    BACKWARD_PASSES,
    CODE_BYTES_PER_PRODUCT,
    FLOAT32_BYTES,
    PIXEL_BYTES,
    SMALL_OPERATION_CODE_BYTES,
    SMALLEST_SHARDED_TENSOR,
)
from backends.plan.execution import Execution
from backends.plan.hardware import System
from backends.plan.small_operations import small_operations
from backends.plan.stages import Stage, stage_recomputes
from backends.plan.trace import Size


@dataclass(frozen=True)
class StageMemory:
    """Bytes on one IPU; `total` is to be compared with the IPU's memory.

    Args:
        weights: parameters as stored.
        optimizer_state: momentum and moments that stay on the IPU.
        accumulators: sums of gradients over micro-batches.
        stash: kept tensors of all micro-batches between their forward and their backward pass.
        activations: what the backward pass of one micro-batch needs besides: saved, or recomputed part by part.
        temporaries: gradients in flight and the workspace of the largest operation.
        code: calibrated allowance for code, exchange code and control.
    """

    weights: int
    optimizer_state: int
    accumulators: int
    stash: int
    activations: int
    temporaries: int
    code: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def fixed(self) -> int:
        """The part that does not depend on the micro-batch (apart from fixed activations)."""
        return self.weights + self.optimizer_state + self.accumulators + self.code


def stage_memory(
    stage: Stage, execution: Execution, system: System, code_bytes_per_product: float = CODE_BYTES_PER_PRODUCT
) -> StageMemory:
    """Return what one stage needs.

    A stage before the last stashes what it keeps for `stash_depth` micro-batches. Where activations are recomputed,
    that is its inputs and checkpoints, and it recomputes one segment between them at a time; otherwise all that is
    saved. The last stage goes backward at once: it holds what it keeps and saves once, as activations.
    """
    optimizer = execution.optimizer
    # One segment, or all of them. What a stage keeps is already in its stash, unless it has none.
    parts = [max(_stored(segment, execution) for segment in stage.segments)]
    if not stage_recomputes(stage, execution):
        parts = [_stored(stage.saved, execution)]
    if stage.is_last:
        parts.append(_kept_bytes(stage, execution))
    return StageMemory(
        weights=stage.num_parameters * execution.weight_bytes,
        optimizer_state=0 if optimizer.off_chip else optimizer_state_bytes(stage, execution),
        accumulators=accumulator_bytes(stage, execution),
        stash=stash_bytes(stage, execution),
        activations=sum(parts),
        temporaries=_temporary_bytes(stage, execution, system),
        code=int(_product_passes(stage, execution) * code_bytes_per_product * system.tiles)
        + int(small_operations(stage, execution).compiled * SMALL_OPERATION_CODE_BYTES * system.tiles),
    )


def stash_bytes(stage: Stage, execution: Execution) -> int:
    """Of all micro-batches between their forward and backward pass; without recomputation, of those that wait."""
    stash = _kept_bytes(stage, execution) * stage.stash_depth
    if not stage.is_last and not stage_recomputes(stage, execution):
        stash += _stored(stage.saved, execution) * (stage.stash_depth - 1)
    return stash


def _kept_bytes(stage: Stage, execution: Execution) -> int:
    return _stored(stage.kept, execution) + stage.image.elements(execution.micro_batch_size) * PIXEL_BYTES


def _stored(size: Size, execution: Execution) -> int:
    return execution.micro_batch_size * size.per_image * execution.stored_bytes + size.fixed * FLOAT32_BYTES


def optimizer_state_bytes(stage: Stage, execution: Execution) -> int:
    """Of one replica's share, wherever it lives."""
    optimizer = execution.optimizer
    share = execution.replicas if optimizer.sharded else 1
    elements = sum(-(-size // share) if size >= SMALLEST_SHARDED_TENSOR else size for size in stage.parameters)
    return elements * optimizer.states * optimizer.state_bits // 8


def accumulator_bytes(stage: Stage, execution: Execution) -> int:
    """Of the gradient accumulators; 0 where each gradient is used at once."""
    optimizer = execution.optimizer
    if not optimizer.has_accumulator(execution.gradient_accumulation):
        return 0
    return stage.num_parameters * optimizer.accumulator_bits // 8


def _temporary_bytes(stage: Stage, execution: Execution, system: System) -> int:
    """Return the largest operation's gradients of input and output, and a product's workspace.

    A product's workspace holds rearranged operands and partial sums, at most the given share of the memory.
    """
    limit = execution.proportion_of(stage.index) * system.memory_without(execution.num_io_tiles)
    images = execution.micro_batch_size
    largest = images * stage.largest_vector * execution.stored_bytes
    for product in stage.products:
        moved = images * product.moved.per_image
        weights = product.weights * (execution.stored_bytes + execution.weight_bytes)  # a copy, and its gradient
        workspace = int(min(limit, moved * execution.partial_bytes))
        largest = max(largest, moved * execution.stored_bytes + weights + workspace)
    return largest


def _product_passes(stage: Stage, execution: Execution) -> int:
    """Of products; large operations of other kinds share their code, and no number is published for what each adds."""
    passes = 1 + BACKWARD_PASSES + int(stage_recomputes(stage, execution))
    return passes * len(stage.products)
