"""The choice of a CPU or a GPU, and what a workload needs there."""

from __future__ import annotations

import logging
import os
from typing import Tuple

import torch
import torch.distributed as dist
from torch import nn

from backends.base import Workload
from backends.errors import DeviceError
from backends.host_memory import available_bytes, keep_freed_memory
from backends.machine import has_bfloat16_instructions
from backends.process_group import join, leave
from backends.torch_native.session import TorchPlacement
from configs.batch import plan_batch
from configs.schema.device import DeviceConfig

LOGGER = logging.getLogger(__name__)
_MEMORY_SHARE = 0.7  # of what is free: the rest is for weights, gradients, temporaries and other programs
_PEAK_OVER_SAVED = 1.5  # peak of forward + backward over what is saved for backward: gradients of activations


class TorchDevice:
    """A CPU or CUDA device; joins the group of processes that torchrun started. See `backends.base.Device`.

    Args:
        config: section `device`.
        note: what its reason begins with.

    Raises:
        DeviceError: the device is not here.
    """

    def __init__(self, config: DeviceConfig, note: str = "") -> None:
        self._config = config
        self.runs_hooks = not config.compile
        self.runs_kernels = True
        self._device, reason = _choose_device(config.name)
        self.reason = note + reason
        self.name = str(self._device)
        self.precision = _choose_precision(config.precision, self._device)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if self._device.type == "cpu":
            keep_freed_memory()
        else:
            torch.cuda.set_device(self._device)
        self._joined = _join_process_group(self._device)
        self._processes = dist.get_world_size() if self._joined else 1
        self.is_primary = not self._joined or dist.get_rank() == 0
        if self.is_primary and self.precision == "bfloat16" and not _has_bfloat16(self._device):
            LOGGER.warning(
                "device.precision bfloat16: %s has no instructions for it and emulates them, several times slower than "
                "float32; use --set device.precision=auto, or float32",
                "this processor" if self._device.type == "cpu" else "this GPU",
            )

    def choose_operations(self, network: nn.Module) -> None:
        pass  # its layers choose between the fused kernels and plain operations themselves

    def settle(self, workload: Workload) -> TorchPlacement:
        plan = plan_batch(
            workload.batch,
            uses_batch_norm=workload.uses_batch_norm,
            replicas=self._processes,
            local_replicas=1,
            max_micro_batch_size=self.largest_micro_batch(workload.saved_bytes_per_image),
            can_share_statistics=True,
        )
        return TorchPlacement(self._device, self._config, self.precision, plan, workload.optimizer)

    def largest_micro_batch(self, saved_bytes_per_image: int) -> int:
        """Return images whose forward and backward are estimated to fit the memory of every process."""
        if self._device.type == "cuda":
            free, sharing = torch.cuda.mem_get_info(self._device)[0], 1
        else:
            free, sharing = available_bytes(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        fits = int(free * _MEMORY_SHARE / sharing / (saved_bytes_per_image * _PEAK_OVER_SAVED))
        return max(1, _smallest_over_processes(fits, self._device) if self._joined else fits)

    def close(self) -> None:
        if self._joined:
            leave()


def _choose_device(name: str) -> Tuple[torch.device, str]:
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "cpu":
        return torch.device("cpu"), "asked for"
    if torch.cuda.is_available():
        if local_rank >= torch.cuda.device_count():
            raise DeviceError(
                f"local process {local_rank} has no GPU of its own: this machine has {torch.cuda.device_count()}; "
                "start at most that many processes, or use device.name cpu"
            )
        return torch.device("cuda", local_rank), "asked for" if name == "cuda" else "a CUDA device is available"
    if name == "cuda":
        raise DeviceError(
            f"device.name cuda: torch {torch.__version__} finds no CUDA device; use device.name cpu or auto"
        )
    return torch.device("cpu"), "no CUDA device is available"


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return has_bfloat16_instructions()


def _choose_precision(name: str, device: torch.device) -> str:
    if name != "auto":
        return name
    return "bfloat16" if _has_bfloat16(device) else "float32"


def _join_process_group(device: torch.device) -> bool:
    """Join the group of processes that torchrun started, if it did."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return False
    join("nccl" if device.type == "cuda" else "gloo")
    return True


def _smallest_over_processes(value: int, device: torch.device) -> int:
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
    return int(tensor)
