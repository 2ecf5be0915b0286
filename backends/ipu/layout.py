"""How a workload is laid out on IPUs: all that PopTorch has to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Optional, Tuple

from configs import BatchPlan
from configs.schema.device import IpuConfig
from configs.schema.learning import OptimizerConfig


@dataclass(frozen=True)
class Launch:
    """How this process was started.

    Attributes:
        process: its number.
        processes: that share the IPUs.
        horovod: the module horovod.torch, where horovodrun and not poprun started them.
    """

    process: int = 0
    processes: int = 1
    horovod: Optional[Any] = None


@dataclass(frozen=True)
class Layout:
    """A workload on IPUs.

    Attributes:
        name: of the device: ipu, ipu_model or ipu_emulator.
        config: section `ipu`.
        launch: of this process.
        plan: the batch arithmetic.
        splits: modules at which a stage begins, given or proposed.
        checkpoints: modules whose outputs are kept for backward.
        is_strided: whether the device groups the channels of group norms c mod G.
        optimizer: the section of the configuration.
        begins: module path -> place of its first operation in the order of execution.
    """

    name: str
    config: IpuConfig
    launch: Launch
    plan: BatchPlan
    splits: Tuple[str, ...]
    checkpoints: Tuple[str, ...]
    is_strided: bool
    optimizer: OptimizerConfig
    begins: Mapping[str, int]

    @property
    def stages(self) -> int:
        """IPUs of one replica."""
        return len(self.splits) + 1
