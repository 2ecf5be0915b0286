"""IPUs before anything is compiled: how many replicas of how many stages, which micro-batch, and will it fit."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Dict, Optional, Sequence, Set, Tuple

from torch import nn

from backends.base import Workload
from backends.ipu.optimizer import require_formula
from backends.ipu.placement import find_module
from backends.ipu.step import use_device_grouping, use_plain_operations
from backends.plan import Execution, IpuPlan, OptimizerState, largest_micro_batch, plan_ipu
from backends.plan.hardware import find_system
from backends.plan.propose import propose_plan
from backends.plan.report import decoding_cores, format_plan
from backends.plan.trace import Trace, trace_network
from configs import BatchPlan, ConfigError
from configs.schema.device import IpuConfig
from configs.schema.learning import OptimizerConfig
from training.classifier import Classifier
from training.optimizer import build_optimizer

_PHOTOGRAPHS = 128  # pixels a side: smaller images come from memory, not from files


class PlannedIpus:
    """What is known of a run on IPUs without PopTorch: enough for `--dry-run`, and the first half of IpuBackend.

    Args:
        name, reason: as of a Backend.
        config: section `ipu`.
        processes: that share the IPUs.
    """

    is_primary = True
    can_share_statistics = False  # PopTorch has no batch norm over replicas
    runs_hooks = False
    will_compile = True

    def __init__(self, name: str, reason: str, config: IpuConfig, processes: int = 1) -> None:
        self.name, self.reason = name, reason
        self.precision: str = config.precision
        self.replicas = self.local_replicas = 0  # max_micro_batch_size settles them
        self._ipu, self._processes = config, processes
        self.device_iterations = config.device_iterations
        self._splits: Tuple[str, ...] = ()
        self._checkpoints: Tuple[str, ...] = ()
        self._workload: Optional[Workload] = None
        self._trace: Optional[Trace] = None
        self._estimate: Optional[IpuPlan] = None

    def choose_operations(self, network: nn.Module) -> None:
        """Plain ones, which PopTorch compiles.

        Raises:
            ConfigError: the configuration insists on the fused kernels of CPUs and GPUs.
        """
        use_plain_operations(network)

    def max_micro_batch_size(self, workload: Workload) -> int:
        """Images of the planner's proposal, or that are estimated to fit the given splits. Settles the replicas.

        Raises:
            ConfigError: stages that do not divide the IPUs, an unknown module, or nothing that fits.
        """
        for field in ("splits", "checkpoints"):
            for path in getattr(self._ipu, field) or ():
                find_module(workload.network, path, f"ipu.{field}")
        self._workload = workload
        self._trace = trace_network(workload.network, workload.image_size, workload.in_channels)
        if self._ipu.splits is None:
            micro = self._propose(workload)
        else:
            self._splits, self._checkpoints = self._ipu.splits, self._ipu.checkpoints or ()
            micro = self._largest(workload)
        self.local_replicas = self.replicas // self._processes
        if self.local_replicas * self._processes != self.replicas:
            raise ConfigError(
                f"ipu.ipus {self._ipu.ipus} with {self._stages} stages are {self.replicas} replicas, which "
                f"{self._processes} processes cannot share evenly; change ipu.ipus or the number of processes"
            )
        return micro

    def setup(
        self, classifier: Classifier, plan: BatchPlan, optimizer: OptimizerConfig, undecayed: Set[str], seed: int
    ) -> None:
        """All that can be refused without PopTorch, so that a dry run refuses what the run would.

        Raises:
            ConfigError, DeviceError: with the rule and a way out.
        """
        assert self._workload is not None, "max_micro_batch_size comes first"
        self._plan = plan
        self._check_plan(plan)
        self._check_whole_calls(self._workload.training_images // plan.global_batch_size, first_step=0)
        self._host_optimizer = build_optimizer(optimizer, classifier.network, undecayed)
        require_formula(self._host_optimizer)
        self._is_strided = use_device_grouping(classifier.network)

    def details(self) -> Dict[str, str]:
        """More lines to print: IPUs and options, and the planner's estimate."""
        given = "proposed" if self._ipu.splits is None else "given"
        text = f"{self._ipu.ipus} {self._ipu.system} = {self.replicas} replicas x {self._stages} stages"
        text += f", {self._processes} processes" if self._processes > 1 else ""
        text += f"; {given} splits: {', '.join(self._splits) or 'none'}"
        if self.device_iterations > 1:
            text += f"; {self.device_iterations} weight updates a call, at the learning rate of the first"
        lines = {"ipus": text}
        if self._workload is not None and self._workload.image_size >= _PHOTOGRAPHS:
            needed, present = decoding_cores(self.estimate.images_per_second), os.cpu_count() or 1
            few = "" if present >= needed else ", too few: the IPUs will wait for images"
            lines["host"] = (
                f"{needed} cores decode as many JPEG files of 500 x 400 pixels; this machine has {present}{few}"
            )
        if self.name == "ipu":
            lines["poprun"] = f"--num-replicas {self.replicas} --ipus-per-replica {self._stages}"
        return {**lines, "planner": f"an estimate\n{format_plan(self.estimate)}"}

    @property
    def estimate(self) -> IpuPlan:
        """The planner's, of what `setup` was given."""
        assert self._estimate is not None, "setup comes first"
        return self._estimate

    @property
    def refusals(self) -> Sequence[str]:
        return self.estimate.refusals

    @property
    def _stages(self) -> int:
        return len(self._splits) + 1

    def _check_plan(self, plan: BatchPlan) -> None:
        """Refuses what breaks a rule of PopTorch; whether it fits is an estimate, and only reported.

        Raises:
            ConfigError: with each rule and a way out.
        """
        assert self._workload is not None and self._trace is not None, "max_micro_batch_size comes first"
        execution = replace(
            self._execution(self._workload),
            micro_batch_size=plan.micro_batch_size,
            gradient_accumulation=plan.gradient_accumulation,
        )
        broken = execution.broken_rules()
        if broken:
            raise ConfigError("; ".join(broken))
        self._estimate = plan_ipu(self._trace, execution, system=self._ipu.system)

    def _check_whole_calls(self, steps_per_epoch: int, first_step: int) -> None:
        updates, left = self._plan.device_iterations, steps_per_epoch - first_step
        if left % updates:
            divisors = [size for size in range(1, left + 1) if left % size == 0 and size <= updates]
            raise ConfigError(
                f"ipu.device_iterations {updates} does not divide the {left} weight updates that are left of this "
                f"epoch's {steps_per_epoch}; use {divisors[-1]}, or another batch.global_batch_size"
            )

    def _propose(self, workload: Workload) -> int:
        """The fastest execution that is estimated to fit, else the smallest. Takes over its splits and checkpoints."""
        batch = workload.batch
        kept = batch.micro_batch_size or (batch.norm_batch_size if batch.norm_batch_size > 1 else None)
        assert self._trace is not None
        try:
            proposal = propose_plan(
                self._trace,
                self._execution(workload),
                ipus=self._ipu.ipus,
                global_batch_size=batch.global_batch_size,
                system=find_system(self._ipu.system),
                micro_batch_size=kept,
            )
        except ValueError as error:
            raise ConfigError(f"ipu.ipus {self._ipu.ipus}: {error}") from error
        self._splits, self._checkpoints = proposal.execution.splits, proposal.execution.checkpoints
        self.replicas = proposal.execution.replicas
        return proposal.execution.micro_batch_size

    def _largest(self, workload: Workload) -> int:
        """Images that fit the given splits and fill their pipeline."""
        if self._ipu.ipus % self._stages:
            raise ConfigError(
                f"ipu.ipus {self._ipu.ipus} is not an integer x {self._stages} stages; change ipu.splits, or use "
                f"{self._ipu.ipus // self._stages * self._stages or self._stages} IPUs"
            )
        self.replicas = self._ipu.ipus // self._stages
        assert self._trace is not None
        fits = largest_micro_batch(self._trace, self._execution(workload), system=self._ipu.system)
        least = 2 * self._stages - 1  # micro-batches of one weight update that the pipeline needs
        return max(1, min(fits, workload.batch.global_batch_size // self.replicas // least))

    def _execution(self, workload: Workload) -> Execution:
        """The run in the planner's words, with one image in a micro-batch."""
        proportion = self._ipu.available_memory_proportion
        execution = Execution(
            micro_batch_size=1,
            gradient_accumulation=2 * self._stages - 1,
            replicas=max(1, self.replicas),
            splits=self._splits,
            checkpoints=self._checkpoints,
            recompute=self._stages > 1 or bool(self._checkpoints),
            precision=self._ipu.precision,
            partials=self._ipu.partials,
            num_io_tiles=self._ipu.io_tiles or 0,
            optimizer=OptimizerState(
                name=workload.optimizer.name,
                momentum=bool(workload.optimizer.momentum),
                sharded=self._ipu.optimizer_sharded,
                off_chip=self._ipu.optimizer_off_chip,
            ),
        )
        return execution if proportion is None else replace(execution, available_memory_proportion=(proportion,))


class DryRunIpus(PlannedIpus):
    """IPUs that are only planned for: train.py --dry-run needs no PopTorch."""

    def norm_group(self, plan: BatchPlan) -> None:
        return None

    def close(self) -> None:
        pass
