"""WHERE a run executes: the choice of a device, and one file per kind of it."""

import os
from typing import cast

import torch

from backends.base import Backend, Workload
from backends.errors import DeviceError, LostProcessError
from configs.schema.device import DeviceConfig, IpuConfig

__all__ = ["Backend", "DeviceError", "LostProcessError", "Workload", "choose_backend"]


def choose_backend(config: DeviceConfig, ipu: IpuConfig, dry_run: bool = False) -> Backend:
    """The backend of `config.name`; for "auto" the best device found: IPU, CUDA, CPU. Its `reason` says why.

    Args:
        ipu: section `ipu`.
        dry_run: nothing will be executed: IPUs are planned for without PopTorch.

    Raises:
        DeviceError: the device is not here.
    """
    from backends.ipu.sdk import has_sdk  # these imports are here because other devices need none of them
    from backends.torch_native import TorchBackend

    if config.name.startswith("ipu"):
        if dry_run:
            from backends.ipu.planned import DryRunIpus

            return cast(Backend, DryRunIpus(config.name, "a dry run needs none", ipu))  # with no method to execute
        return _ipu_backend(config.name, "asked for", config, ipu)
    note = ""
    if config.name == "auto" and has_sdk():
        from backends.ipu.backend import hardware_is_attached

        if hardware_is_attached():
            return _ipu_backend("ipu", "an IPU is attached", config, ipu)
        note = "PopTorch is installed, but no IPU is attached; "
        if "POPDIST_NUM_TOTAL_REPLICAS" in os.environ:
            raise DeviceError(f"device.name auto under poprun: {note}without poprun, CUDA or the CPU would be used")
    backend = TorchBackend(config)
    backend.reason = note + backend.reason
    return backend


def _ipu_backend(name: str, reason: str, config: DeviceConfig, ipu: IpuConfig) -> Backend:
    from backends.ipu.sdk import require_emulator, require_sdk

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if name == "ipu_emulator":
        require_emulator()
    else:
        require_sdk(name)
    from backends.ipu.backend import IpuBackend

    return IpuBackend(name, reason, ipu)
