"""Sums, maxima and gathering over the processes of a run on the host: through Horovod, or torch.distributed."""

from __future__ import annotations

import os
from typing import Any, List

import torch
import torch.distributed as dist
from typing_extensions import Protocol

from backends.errors import DeviceError
from backends.process_group import join, leave


class Processes(Protocol):
    """The processes that train together. Every one must call each method."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over all processes, element by element."""

    def gather(self, values: torch.Tensor) -> List[torch.Tensor]:
        """`values` of all processes in order, of equal shapes."""

    def close(self) -> None:
        """Leave the group."""


class OneProcess:
    """A process by itself."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def gather(self, values: torch.Tensor) -> List[torch.Tensor]:
        return [values]

    def close(self) -> None:
        pass


class HorovodProcesses:
    """Processes connected by Horovod.

    Args:
        horovod: the module horovod.torch, initialized.
    """

    def __init__(self, horovod: Any) -> None:
        self._horovod = horovod

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return self._horovod.allreduce(values, op=self._horovod.Sum)

    def gather(self, values: torch.Tensor) -> List[torch.Tensor]:
        return list(self._horovod.allgather(values.unsqueeze(0)))

    def close(self) -> None:
        self._horovod.shutdown()
        leave()  # the emulator's instances have one besides


class TorchProcesses:
    """Processes connected by torch.distributed's gloo backend; joins its group if nothing else has.

    Raises:
        DeviceError: the processes cannot find each other.
    """

    def __init__(self, index: int, count: int) -> None:
        self._count = count
        if not dist.is_initialized():
            if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
                raise DeviceError(
                    f"{count} processes need Horovod, or MASTER_ADDR and MASTER_PORT for torch.distributed, to add up "
                    "what they measure; `make horovod` builds Horovod, or pass both variables through the launcher "
                    '(poprun --mpi-local-args="-x MASTER_ADDR=... -x MASTER_PORT=...")'
                )
            join("gloo", rank=index, world_size=count)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    def gather(self, values: torch.Tensor) -> List[torch.Tensor]:
        gathered = [torch.empty_like(values) for _ in range(self._count)]
        dist.all_gather(gathered, values)
        return gathered

    def close(self) -> None:
        leave()
