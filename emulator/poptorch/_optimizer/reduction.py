"""How gradients are reduced over accumulation steps and replicas."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..enums import MeanReductionStrategy, ReductionType


class Reduction(NamedTuple):
    """The options about it: a sum, a mean taken in the weight update (strategy Post), or a running mean.

    Args:
        accumulation: micro steps of a weight update.
        replicas: of all processes.
        takes_mean: else the sum.
        is_running: the mean is kept while gradients are accumulated and reduced.
    """

    accumulation: int
    replicas: int
    takes_mean: bool
    is_running: bool

    @staticmethod
    def of(options: Any) -> Reduction:
        """As the options say."""
        training = options.Training
        takes_mean = training.accumulation_and_replication_reduction_type != ReductionType.Sum
        strategy = training.meanAccumulationAndReplicationReductionStrategy
        return Reduction(
            training.gradient_accumulation,
            options.replication_factor * int(options.Distributed.numProcesses),
            bool(takes_mean),
            bool(takes_mean and strategy == MeanReductionStrategy.Running),
        )

    @property
    def replicas_in_mean(self) -> int:
        """The replicas' part of the mean."""
        return self.replicas if self.takes_mean else 1

    @property
    def divisor_of_step(self) -> int:
        """What a micro step's gradient is divided by before it is added up."""
        return self.accumulation * self.replicas if self.is_running else 1

    @property
    def divisor_of_update(self) -> int:
        """What the weight update divides the sum by."""
        return self.accumulation * self.replicas if self.takes_mean and not self.is_running else 1
