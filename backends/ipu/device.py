"""IPUs before anything is compiled: replicas, stages and the batch plan of a workload, without PopTorch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Dict, Sequence, Set

from torch import nn

from backends.base import Session, Workload
from backends.ipu.batches import check_whole_calls
from backends.ipu.layout import Launch, Layout
from backends.ipu.optimizer import refuse_clipping, require_formula
from backends.ipu.planned import Planned
from backends.ipu.popart_options import check_popart_options
from backends.ipu.step import use_device_grouping, use_plain_operations
from backends.plan import IpuPlan
from backends.plan.report import decoding_cores, format_plan
from configs import BatchPlan, ConfigError, plan_batch
from configs.counted import counted
from configs.schema.device import IpuConfig
from training.classifier import Classifier
from training.optimizer import build_optimizer

_PHOTOGRAPHS = 128  # pixels a side: smaller images come from memory, not from files of their own


class IpuDevice:
    """IPUs, attached or only planned for. See `backends.base.Device`.

    Args:
        name: ipu, ipu_model or ipu_emulator.
        reason: why it was chosen.
        config: section `ipu`.
        launch: how this process was started.
    """

    runs_hooks = False
    runs_kernels = False

    def __init__(self, name: str, reason: str, config: IpuConfig, launch: Launch = Launch()) -> None:  # noqa: B008  immutable
        self.name, self.reason = name, reason
        self.precision: str = config.precision
        self.is_primary = launch.process == 0
        self._config, self._launch = config, launch

    def choose_operations(self, network: nn.Module) -> None:
        """Plain ones, which PopTorch compiles.

        Raises:
            ConfigError: the configuration insists on the fused kernels of CPUs and GPUs.
        """
        use_plain_operations(network)

    def settle(self, workload: Workload) -> IpuPlacement:
        """Settle all that needs no PopTorch, so that a dry run refuses what the run would."""
        check_popart_options(self._config.popart)
        is_model = self.name == "ipu_model"
        if is_model and self._launch.processes > 1:
            raise ConfigError(
                f"device.name ipu_model in {self._launch.processes} processes; the IPU Model has no replicas to share: "
                "start one process, without poprun"
            )
        planned = Planned(self._config, self._launch.processes, workload, one_replica=is_model)
        plan = plan_batch(
            workload.batch,
            uses_batch_norm=workload.uses_batch_norm,
            replicas=planned.replicas,
            local_replicas=planned.replicas // self._launch.processes,
            max_micro_batch_size=planned.largest_micro_batch,
            can_share_statistics=False,  # PopTorch has no batch norm over replicas
            device_iterations=self._config.device_iterations,
        )
        estimate = planned.estimate(plan)
        check_whole_calls(plan, workload.training_images // plan.global_batch_size, first_step=0)
        refuse_clipping(workload.optimizer)
        require_formula(build_optimizer(workload.optimizer, workload.network, set()))
        layout = Layout(
            self.name,
            self._config,
            self._launch,
            plan,
            planned.splits,
            planned.checkpoints,
            use_device_grouping(workload.network),
            workload.optimizer,
            planned.begins,
        )
        details = {**_details(layout), **_host_details(estimate, workload.image_size)}
        return IpuPlacement(layout, {**details, "planner": f"an estimate\n{format_plan(estimate)}"}, estimate)

    def close(self) -> None:
        pass  # what connects processes is the session's


@dataclass(frozen=True)
class IpuPlacement:
    """A workload settled on IPUs. See `backends.base.Placement`.

    Attributes:
        layout: where its parts are.
        details: IPUs and options, and the planner's estimate.
        estimate: the planner's.
    """

    layout: Layout
    details: Dict[str, str]
    estimate: IpuPlan

    @property
    def plan(self) -> BatchPlan:
        return self.layout.plan

    @property
    def refusals(self) -> Sequence[str]:
        return self.estimate.refusals

    def start(self, classifier: Classifier, undecayed: Set[str], seed: int) -> Session:
        from backends.ipu.session import IpuSession  # from here on PopTorch is needed

        return IpuSession(self.layout, classifier, undecayed, seed)


def _details(layout: Layout) -> Dict[str, str]:
    config, replicas, processes = layout.config, layout.plan.replicas, layout.launch.processes
    given = "proposed" if config.splits is None else "given"
    stages = counted(layout.stages, "stage")
    text = f"{replicas * layout.stages} {config.system} = {counted(replicas, 'replica')} x {stages}"
    if layout.name == "ipu_model":
        text += f", not the {config.ipus} of ipu.ipus, since the IPU Model has no replicas"
    text += f", {processes} processes" if processes > 1 else ""
    text += f"; {given} splits: {', '.join(layout.splits) or 'none'}"
    if config.device_iterations > 1:
        text += f"; {config.device_iterations} weight updates a call, at the learning rate of the first"
    poprun = f"--num-replicas {replicas} --ipus-per-replica {layout.stages}"
    return {"ipus": text, **({"poprun": poprun} if layout.name == "ipu" else {})}


def _host_details(estimate: IpuPlan, image_size: int) -> Dict[str, str]:
    """Return how many cores must decode, where images are files."""
    if image_size < _PHOTOGRAPHS:
        return {}
    needed, present = decoding_cores(estimate.images_per_second), os.cpu_count() or 1
    few = "" if present >= needed else ", too few: the IPUs will wait for images"
    return {
        "host": f"{counted(needed, 'core')} decode as many JPEG files of 500 x 400 pixels; this host has {present}{few}"
    }
