"""A profile of real hardware, by which the planner is checked and to which nothing in its speed is fitted.

Source: the repository osmarks/ipu-stack, docs/SDK_ONNX_PROFILE_ANALYSIS.md (September 2026): the vision tower of SigLIP
So400m, one image of 384 x 384 forward, compiled by Poplar 3.4 for an IPU21, weights stored as float8 and computing in
float16. Cycles of a product are those of its longest tile's compute set alone, without exchange, preparation and
synchronization; the whole is from the end of input delivery to the last computation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict

import torch
from torch import Tensor, nn

from backends.plan.execution import Execution
from backends.plan.hardware import SYSTEMS
from backends.plan.stages import cut_stages
from backends.plan.timing import Rates, stage_seconds
from backends.plan.trace import Trace, trace_network

IMAGE_SIZE, PATCH, TOKENS, WIDTH, HEADS, HIDDEN, BLOCKS = 384, 14, 729, 1152, 16, 4304, 27
WHOLE_CYCLES = 15_987_659


@dataclass(frozen=True)
class MeasuredProduct:
    """One product of each block.

    Args:
        multiply_adds: for one image.
        cycles: of its compute set.
    """

    multiply_adds: int
    cycles: int

    @property
    def efficiency(self) -> float:
        """Share of the peak of 64 multiply-adds a cycle on 1,472 tiles."""
        system = SYSTEMS["c600"]
        return self.multiply_adds / (system.tiles * system.half_flops_per_cycle / 2) / self.cycles


_HEAD_PRODUCT = TOKENS * TOKENS * WIDTH  # of all heads together
PRODUCT_CYCLES: Dict[str, MeasuredProduct] = {
    "query, key and value": MeasuredProduct(TOKENS * WIDTH * 3 * WIDTH, 37_277),
    "query x key": MeasuredProduct(_HEAD_PRODUCT, 8_488),
    "probabilities x value": MeasuredProduct(_HEAD_PRODUCT, 12_900),
    "attention output": MeasuredProduct(TOKENS * WIDTH * WIDTH, 14_153),
    "MLP up": MeasuredProduct(TOKENS * WIDTH * HIDDEN, 48_248),
    "MLP down": MeasuredProduct(TOKENS * WIDTH * HIDDEN, 52_187),
}


def predict_forward_cycles() -> float:
    """Return the planner's cycles of the whole transformer, forward, one image."""
    execution = Execution(micro_batch_size=1, gradient_accumulation=1, recompute=False)
    system, rates = SYSTEMS["c600"], Rates()
    (stage,) = cut_stages(transformer_trace())
    seconds = stage_seconds(stage, execution, system, rates)
    # All but the transfers takes as many passes as there are in training, 1 forward and 2 backward.
    return replace(seconds, host=0.0, links=0.0).total / 3 * system.clock_hertz


def transformer_trace() -> Trace:
    """Of the vision tower, on the meta device; its pooling by attention is 1/27 of a block, and left out."""
    with torch.device("meta"):
        network = nn.Sequential(nn.Conv2d(3, WIDTH, PATCH, stride=PATCH), _Tokens(), *(_Block() for _ in range(BLOCKS)))
    return trace_network(network, IMAGE_SIZE)


class _Tokens(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.queries, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries(self.norm1(x)).view(len(x), TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        scores = (query * (WIDTH // HEADS) ** -0.5) @ key.transpose(-2, -1)
        attended = (scores.softmax(-1) @ value).transpose(1, 2).reshape(len(x), TOKENS, WIDTH)
        x = x + self.output(attended)
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x)), approximate="tanh"))
