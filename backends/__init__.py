"""WHERE a run executes: the choice of a device, and one folder per kind of it."""

import os

import torch

from backends.base import Device, Placement, Session, Workload
from backends.errors import DeviceError, LostProcessError
from configs.schema.device import DeviceConfig, IpuConfig

__all__ = ["Device", "DeviceError", "LostProcessError", "Placement", "Session", "Workload", "choose_device"]


def choose_device(config: DeviceConfig, ipu: IpuConfig, dry_run: bool = False) -> Device:
    """Return the device of `config.name`; for "auto" the best that is found: IPU, CUDA, CPU. Its `reason` says why.

    Args:
        config: section `device`.
        ipu: section `ipu`.
        dry_run: nothing will be executed: IPUs are planned for without PopTorch.

    Raises:
        DeviceError: the device is not here.
    """
    from backends.ipu.sdk import has_sdk  # these imports are here because other devices need none of them

    if config.name.startswith("ipu"):
        if dry_run:
            from backends.ipu.device import IpuDevice

            return IpuDevice(config.name, "a dry run needs none", ipu)
        return _attached_ipus(config.name, "asked for", config, ipu)
    note = ""
    if config.name == "auto" and has_sdk():
        from backends.ipu.attached import hardware_is_attached

        if hardware_is_attached():
            return _attached_ipus("ipu", "an IPU is attached", config, ipu)
        note = "PopTorch is installed, but no IPU is attached; "
        if "POPDIST_NUM_TOTAL_REPLICAS" in os.environ:
            raise DeviceError(f"device.name auto under poprun: {note}without poprun, CUDA or the CPU would be used")
    from backends.torch_native.device import TorchDevice

    return TorchDevice(config, note)


def _attached_ipus(name: str, reason: str, config: DeviceConfig, ipu: IpuConfig) -> Device:
    from backends.ipu.device import IpuDevice
    from backends.ipu.sdk import require_emulator, require_sdk

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if name == "ipu_emulator":
        require_emulator()
    else:
        require_sdk(name)
    from backends.ipu.attached import require_ipus

    return IpuDevice(name, reason, ipu, require_ipus(name, ipu))
