"""What the planner says of a workload: how many replicas of how many stages, which micro-batch, and will it fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Tuple

from backends.base import Workload
from backends.ipu.placement import find_module
from backends.plan import Execution, IpuPlan, OptimizerState, largest_micro_batch, plan_ipu
from backends.plan.hardware import find_system
from backends.plan.propose import propose_plan
from backends.plan.trace import trace_network
from configs import BatchPlan, ConfigError
from configs.schema.device import IpuConfig


class Planned:
    """The stages of a workload: those of the configuration, or the planner's proposal.

    Args:
        config: section `ipu`.
        processes: that share the IPUs.
        workload: to be executed.
        one_replica: whatever ipu.ipus allows, for the IPU Model, which has no replicas.

    Attributes:
        splits: modules at which a stage begins.
        checkpoints: modules whose outputs are kept for backward.
        replicas: of all stages, over all processes.
        largest_micro_batch: images of the proposal, or that are estimated to fit the given splits.
        begins: module path -> place of its first operation in the order of execution.

    Raises:
        ConfigError: stages that do not divide the IPUs, an unknown module, or nothing that fits.
    """

    def __init__(self, config: IpuConfig, processes: int, workload: Workload, one_replica: bool = False) -> None:
        self._config, self._workload = config, workload
        for field in ("splits", "checkpoints"):
            for path in getattr(config, field) or ():
                find_module(workload.network, path, f"ipu.{field}")
        self._trace = trace_network(workload.network, workload.image_size, workload.in_channels)
        self.begins = self._trace.begins
        found = self._proposed() if config.splits is None else self._largest()
        if one_replica:  # with the same micro-batches, more of them in a weight update
            found = replace(found, replicas=1)
        self._execution = found
        self.splits: Tuple[str, ...] = found.splits
        self.checkpoints: Tuple[str, ...] = found.checkpoints
        self.replicas, self.largest_micro_batch = found.replicas, found.micro_batch_size
        if self.replicas % processes:
            raise ConfigError(
                f"ipu.ipus {config.ipus} with {len(self.splits) + 1} stages are {self.replicas} replicas, which "
                f"{processes} processes cannot share evenly; change ipu.ipus or the number of processes"
            )

    def estimate(self, plan: BatchPlan) -> IpuPlan:
        """Refuse what breaks a rule of PopTorch; whether it fits is an estimate, and only reported.

        Raises:
            ConfigError: with each rule and a way out.
        """
        execution = replace(
            self._execution,
            micro_batch_size=plan.micro_batch_size,
            gradient_accumulation=plan.gradient_accumulation,
        )
        broken = execution.broken_rules()
        if broken:
            raise ConfigError("; ".join(broken))
        return plan_ipu(self._trace, execution, system=self._config.system)

    def _proposed(self) -> Execution:
        """Return the fastest execution that is estimated to fit, else the smallest."""
        batch = self._workload.batch
        kept = batch.micro_batch_size or (batch.norm_batch_size if batch.norm_batch_size > 1 else None)
        try:
            proposal = propose_plan(
                self._trace,
                self._execution_of((), (), 1),
                ipus=self._config.ipus,
                global_batch_size=batch.global_batch_size,
                system=find_system(self._config.system),
                micro_batch_size=kept,
            )
        except ValueError as error:
            raise ConfigError(f"ipu.ipus {self._config.ipus}: {error}") from error
        found = proposal.execution
        # The parts of it that another micro-batch keeps.
        execution = self._execution_of(found.splits, found.checkpoints, found.replicas)
        return replace(execution, micro_batch_size=found.micro_batch_size)

    def _largest(self) -> Execution:
        """Return the given splits with as many images as fit them and fill their pipeline."""
        splits, ipus = self._config.splits or (), self._config.ipus
        stages = len(splits) + 1
        if ipus % stages:
            raise ConfigError(
                f"ipu.ipus {ipus} is not an integer x {stages} stages; change ipu.splits, or use "
                f"{ipus // stages * stages or stages} IPUs"
            )
        execution = self._execution_of(splits, self._config.checkpoints or (), ipus // stages)
        fits = largest_micro_batch(self._trace, execution, system=self._config.system)
        least = 2 * stages - 1  # micro-batches of one weight update that the pipeline needs
        filling = self._workload.batch.global_batch_size // execution.replicas // least
        return replace(execution, micro_batch_size=max(1, min(fits, filling)))

    def _execution_of(self, splits: Tuple[str, ...], checkpoints: Tuple[str, ...], replicas: int) -> Execution:
        """Return the run in the planner's words, with one image in a micro-batch."""
        config, optimizer = self._config, self._workload.optimizer
        execution = Execution(
            micro_batch_size=1,
            gradient_accumulation=2 * len(splits) + 1,  # 2 stages - 1
            replicas=replicas,
            splits=splits,
            checkpoints=checkpoints,
            recompute=bool(splits or checkpoints),
            precision=config.precision,
            partials=config.partials,
            num_io_tiles=config.io_tiles or 0,
            optimizer=OptimizerState(
                name=optimizer.name,
                momentum=bool(optimizer.momentum),
                sharded=config.optimizer_sharded,
                off_chip=config.optimizer_off_chip,
            ),
        )
        proportion = config.available_memory_proportion
        return execution if proportion is None else replace(execution, available_memory_proportion=(proportion,))
