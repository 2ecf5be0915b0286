"""Seconds that a pipeline stage, and a weight update, take."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Sequence

from backends.plan.constants import (
    ALL_REDUCE_EFFICIENCY,
    BACKWARD_PASSES,
    FLOAT32_BYTES,
    HALF_PRODUCT_WIDTH,
    PIXEL_BYTES,
    PRODUCT_EFFICIENCY,
    PRODUCT_OVERHEAD_CYCLES,
    SINGLE_PRODUCT_WIDTH,
    SMALL_OPERATION_CYCLES,
    STRIDED_COPY_BYTES_PER_CYCLE,
    VECTOR_EFFICIENCY,
)
from backends.plan.execution import Execution
from backends.plan.hardware import System
from backends.plan.memory import accumulator_bytes, optimizer_state_bytes
from backends.plan.small_operations import small_operations
from backends.plan.stages import Stage, stage_recomputes
from backends.plan.trace import Size


@dataclass(frozen=True)
class Rates:
    """The fitted constants together, so that the calibration can try others."""

    product_efficiency: float = PRODUCT_EFFICIENCY
    product_overhead_cycles: float = PRODUCT_OVERHEAD_CYCLES
    all_reduce_efficiency: float = ALL_REDUCE_EFFICIENCY


@dataclass(frozen=True)
class StageSeconds:
    """One micro-batch through one stage: forward, recomputation and backward together.

    Args:
        products: multiplying and adding in convolutions and matrix products.
        overhead: of each product: rearranging, reducing, synchronizing.
        vectors: all other operations, at the speed of the memory.
        exchange: operands and results of products between tiles.
        casts: rearranging weights that are cast for each pass.
        small: operations on values of channels alone, such as the proxy's.
        links: activations from the stage before, and their gradients back.
        host: images from the host, where IO tiles do not overlap them.
    """

    products: float
    overhead: float
    vectors: float
    exchange: float
    casts: float
    small: float
    links: float
    host: float

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))


def stage_seconds(stage: Stage, execution: Execution, system: System, rates: Rates) -> StageSeconds:
    """Return the time of one micro-batch on one stage.

    products  2 multiply_adds passes / (peak x efficiency x filled), filled = min(summed values / width of the unit, 1)
    vectors   bytes moved x passes / (SRAM bandwidth x efficiency)
    casts     bytes of cast weights x passes / (tiles x bytes per cycle x clock)
    small     number of operations in all passes x cycles of one / clock
    passes    1 forward + 2 backward (+ 1 where activations are recomputed)
    """
    images, passes = execution.micro_batch_size, 1 + BACKWARD_PASSES + int(stage_recomputes(stage, execution))
    half = execution.stored_bytes == 2
    width = HALF_PRODUCT_WIDTH if half else SINGLE_PRODUCT_WIDTH
    per_cycle = system.half_flops_per_cycle if half else system.single_flops_per_cycle
    # Tiles that are set aside for host transfers do not compute.
    share = 1 - execution.num_io_tiles / system.tiles
    peak = system.tiles * share * per_cycle * system.clock_hertz

    def stored(size: Size) -> int:
        return images * size.per_image * execution.stored_bytes + size.fixed * FLOAT32_BYTES

    products = exchange_bytes = 0.0
    cast_bytes = 0
    for product in stage.products:
        filled = min(product.summed / width, 1.0)
        products += 2 * product.multiply_adds * images / (peak * rates.product_efficiency * filled)
        exchange_bytes += stored(product.moved) + product.weights * execution.stored_bytes
        cast_bytes += product.weights * execution.stored_bytes if execution.casts_weights else 0
    copied_per_second = system.tiles * share * STRIDED_COPY_BYTES_PER_CYCLE * system.clock_hertz
    overhead = len(stage.products) * rates.product_overhead_cycles / system.clock_hertz
    vector_bytes = stored(stage.vectors)
    host_bytes = 0 if execution.num_io_tiles else stage.image.elements(images) * PIXEL_BYTES
    link_bytes = 2 * images * stage.inputs.per_image * execution.stored_bytes
    return StageSeconds(
        products=products * passes,
        overhead=overhead * passes,
        vectors=vector_bytes * passes / (system.sram_bytes_per_second * share * VECTOR_EFFICIENCY),
        exchange=exchange_bytes * passes / (system.exchange_bytes_per_second * share),
        casts=cast_bytes * passes / copied_per_second,
        small=small_operations(stage, execution).run * SMALL_OPERATION_CYCLES / system.clock_hertz,
        links=link_bytes / system.link_bytes_per_second,
        host=host_bytes / system.host_bytes_per_second,
    )


def update_seconds(stages: Sequence[Stage], execution: Execution, system: System, rates: Rates) -> float:
    """All-reduce of the gradients and weight update, after the pipeline has drained; the slowest IPU decides.

    all-reduce  2 (R - 1) / R x bytes of gradients / (link bandwidth x efficiency)
    update      weights, gradients and states through the memory once each way, off-chip states through streaming memory
    """
    replicas, slowest = execution.replicas, 0.0
    for stage in stages:
        weights = stage.num_parameters * execution.weight_bytes
        gradients = accumulator_bytes(stage, execution) or stage.num_parameters * execution.stored_bytes
        states = optimizer_state_bytes(stage, execution)
        ring = 2 * (replicas - 1) / replicas * gradients
        seconds = ring / (system.link_bytes_per_second * rates.all_reduce_efficiency)
        seconds += 2 * (weights + gradients + states) / (system.sram_bytes_per_second * VECTOR_EFFICIENCY)
        if execution.optimizer.off_chip:
            seconds += 2 * states / system.streaming_bytes_per_second
        slowest = max(slowest, seconds)
    return slowest
