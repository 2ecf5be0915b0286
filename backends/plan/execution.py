"""How a network is executed on IPUs: what the configuration's device section says, as the planner needs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Tuple

# Tensors of optimizer state per weight, without gradient accumulators. Source: PopART's optimizers (sgd.hpp, adam.hpp,
# adaptive.hpp). The step counters of Adam and LAMB are scalars.
_STATES = {"sgd": 0, "adam": 2, "adamw": 2, "lamb": 2, "rmsprop": 1}
_PRECISIONS = ("16.16", "16.32", "32.32")
_PARTIAL_BYTES = {"half": 2, "float": 4}


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer keeps for each weight on its IPU.

    Args:
        name: sgd, adam, adamw, lamb or rmsprop.
        momentum: sgd, rmsprop: whether there is a momentum buffer.
        combined_accumulator: sgd with momentum: one tensor serves as accumulator and momentum.
        accumulator_bits: of the gradient accumulator (PopTorch's accum_type).
        state_bits: of momentum and moments (velocity_accum_type, first_ and second_order_momentum_accum_type).
        sharded: replicated tensor sharding: each replica keeps its share of states of 8192 elements or more.
        off_chip: states live in streaming memory.
    """

    name: str = "sgd"
    momentum: bool = True
    combined_accumulator: bool = False
    accumulator_bits: int = 32
    state_bits: int = 32
    sharded: bool = False
    off_chip: bool = False

    def __post_init__(self) -> None:
        if self.name not in _STATES:
            raise ValueError(f"optimizer {self.name!r} is unknown to the planner; use one of {', '.join(_STATES)}")
        if self.combined_accumulator and (self.name != "sgd" or not self.momentum):
            raise ValueError(f"combined_accumulator belongs to sgd with momentum; got {self.name}; leave it out")

    @property
    def states(self) -> int:
        """Tensors of state per weight, without the accumulator."""
        extra = int(self.momentum and not self.combined_accumulator) if self.name in ("sgd", "rmsprop") else 0
        return _STATES[self.name] + extra

    def has_accumulator(self, gradient_accumulation: int) -> bool:
        """Whether gradients are summed in a tensor of their own (or in the momentum, when combined)."""
        return gradient_accumulation > 1 or self.combined_accumulator


@dataclass(frozen=True)
class Execution:
    """One way to run a training step.

    Args:
        micro_batch_size: images in one forward and backward of one replica.
        gradient_accumulation: micro-batches summed before a weight update.
        replicas: copies of the model over all IPUs.
        splits: module paths such as "stages.2.0"; a new pipeline stage, on the next IPU, begins at each.
        checkpoints: module paths whose outputs are kept where the rest is recomputed.
        recompute: whether activations are recomputed in the backward pass. None: PopTorch's rule, only when pipelined.
        precision: bits of activations and of weights: "16.16", "16.32" or "32.32".
        partials: what products are summed in: "half" or "float".
        available_memory_proportion: share of the tile memory that a convolution may use for temporaries; one for all
            stages, or one for each.
        num_io_tiles: tiles taken from computing to overlap host transfers with it; 0 for none.
        optimizer: what is kept for each weight.
        joint_proxies: whether the proxies of a stage's layers are computed together, as one vector.
    """

    micro_batch_size: int
    gradient_accumulation: int
    replicas: int = 1
    splits: Tuple[str, ...] = ()
    checkpoints: Tuple[str, ...] = ()
    recompute: Optional[bool] = None
    precision: str = "16.16"
    partials: str = "half"
    available_memory_proportion: Tuple[float, ...] = (0.6,)
    num_io_tiles: int = 0
    optimizer: OptimizerState = OptimizerState()
    joint_proxies: bool = True

    def __post_init__(self) -> None:
        for name in ("micro_batch_size", "gradient_accumulation", "replicas"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)} must be 1 or more")
        if self.precision not in _PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is unknown; use one of {', '.join(_PRECISIONS)}")
        if self.partials not in _PARTIAL_BYTES:
            raise ValueError(f"partials {self.partials!r} are unknown; use one of {', '.join(_PARTIAL_BYTES)}")
        if self.precision == "32.32" and self.partials == "half":
            raise ValueError("partials half belong to float16; with precision 32.32 they are float")
        proportions = self.available_memory_proportion
        if len(proportions) not in (1, self.ipus_per_replica) or not all(0 < share < 1 for share in proportions):
            raise ValueError(
                f"available_memory_proportion {list(proportions)} must be one value in (0, 1), "
                f"or one for each of the {self.ipus_per_replica} stages"
            )

    @property
    def ipus_per_replica(self) -> int:
        """Forward stages, one on each IPU."""
        return len(self.splits) + 1

    @property
    def ipus(self) -> int:
        """All IPUs."""
        return self.replicas * self.ipus_per_replica

    @property
    def global_batch_size(self) -> int:
        """Images per weight update."""
        return self.micro_batch_size * self.gradient_accumulation * self.replicas

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed in the backward pass."""
        return len(self.splits) > 0 if self.recompute is None else self.recompute

    @property
    def stored_bytes(self) -> int:
        """Bytes of one stored activation."""
        return int(self.precision.split(".")[0]) // 8

    @property
    def partial_bytes(self) -> int:
        """Bytes of one partial sum."""
        return _PARTIAL_BYTES[self.partials]

    @property
    def weight_bytes(self) -> int:
        """Bytes of one stored weight."""
        return int(self.precision.split(".")[1]) // 8

    @property
    def casts_weights(self) -> bool:
        """Whether each pass casts the weights of its products: they are stored wider than activations."""
        return self.weight_bytes != self.stored_bytes

    def proportion_of(self, stage: int) -> float:
        """available_memory_proportion of one stage."""
        proportions = self.available_memory_proportion
        return proportions[stage] if len(proportions) > 1 else proportions[0]

    def broken_rules(self) -> List[str]:
        """Rules of PopTorch that this execution breaks, each with a way out. Empty: none."""
        broken = []
        if self.ipus & (self.ipus - 1):
            below = 1 << (self.ipus.bit_length() - 1)
            broken.append(
                f"replicas {self.replicas} x {self.ipus_per_replica} stages are {self.ipus} IPUs; systems give out a "
                f"power of 2; use {below} or {2 * below} IPUs"
            )
        if self.ipus_per_replica > 64:
            broken.append(f"{self.ipus_per_replica} IPUs in a replica; PopTorch places at most 64; use fewer stages")
        least = 2 * self.ipus_per_replica - 1
        if self.ipus_per_replica > 1 and self.gradient_accumulation < least:
            broken.append(
                f"gradient_accumulation {self.gradient_accumulation} with {self.ipus_per_replica} pipeline stages; a "
                f"pipeline needs {least} or more; lower micro_batch_size or the number of stages"
            )
        if self.num_io_tiles and (self.num_io_tiles % 2 or not 32 <= self.num_io_tiles <= 192):
            broken.append(f"num_io_tiles {self.num_io_tiles} must be even and from 32 to 192, or 0")
        if self.num_io_tiles and self.ipus_per_replica > 1:
            broken.append(
                f"num_io_tiles {self.num_io_tiles} with {self.ipus_per_replica} stages; PopTorch overlaps host "
                "transfers without a pipeline only; use num_io_tiles 0"
            )
        if self.checkpoints and not self.recomputes:
            broken.append(
                f"checkpoints {', '.join(self.checkpoints)} without recomputation; set recompute or leave them out"
            )
        return broken
