"""Operations on values of channels alone: how many a stage runs, and how many are compiled."""

from __future__ import annotations

from typing import NamedTuple

from backends.plan.constants import SMALL_BACKWARD_PASSES
from backends.plan.execution import Execution
from backends.plan.stages import Stage, stage_recomputes

# Of layers that are computed together, besides the operations of one: four concatenations of their parameters, and
# backward four of each layer, which bring the gradients of its slices and of its parameters together.
_JOINING, _JOINED_BACKWARD = 4, 4


class SmallOperations(NamedTuple):
    """Of one stage and micro-batch, all passes together.

    Args:
        run: executed.
        compiled: with code of their own. PopART outlines: operations of one kind and size share theirs.
    """

    run: float
    compiled: float


def small_operations(stage: Stage, execution: Execution) -> SmallOperations:
    """Return the proxies' operations and the others.

    layer by layer   n (1 + b + r), n operations forward in all layers, b times as many backward, r = 1 if recomputed
    together         (m + 4) (1 + r) + m b + 4 L, for L layers whose longest has m operations forward
    """
    passes = 1 + SMALL_BACKWARD_PASSES + int(stage_recomputes(stage, execution))
    run = len(stage.small) * passes
    compiled = stage.small.kinds * passes
    if not stage.proxies:
        return SmallOperations(run, compiled)
    if not execution.joint_proxies:
        return SmallOperations(run + len(stage.proxies) * passes, compiled + stage.proxies.kinds * passes)
    layers = stage.proxies.layers
    longest = max(layers.values())
    forward = (longest + _JOINING) * (passes - SMALL_BACKWARD_PASSES)
    together = forward + longest * SMALL_BACKWARD_PASSES + _JOINED_BACKWARD * len(layers)
    return SmallOperations(run + together, compiled + together)
