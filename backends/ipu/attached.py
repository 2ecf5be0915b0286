"""IPUs that are here: through Graphcore's PopTorch on hardware or its IPU Model, or through the emulator."""

from __future__ import annotations

import importlib
import logging
from typing import Any, Optional

import popdist
import poptorch

from backends.errors import DeviceError
from backends.ipu.launch import started_by_horovod
from backends.ipu.layout import Launch
from configs.schema.device import IpuConfig

# ipu.system -> what poptorch.ipuHardwareVersion says
_HARDWARE_VERSIONS = {"mk1": (1,), "c2": (1,), "mk2": (2, 21), "bow": (2, 21), "c600": (21,)}


def require_ipus(name: str, config: IpuConfig) -> Launch:
    """Look for the IPUs that a run is to use, and how this process was started.

    Args:
        name: ipu, ipu_model or ipu_emulator.
        config: section `ipu`.

    Raises:
        DeviceError: no hardware, or processes that were started in another way than poprun's.
    """
    if name == "ipu":
        _require_hardware(config.system)
    # PopTorch prints its log; the root logger's handler would print it again.
    logging.getLogger("poptorch::python").propagate = False
    horovod = started_by_horovod(name, popdist, import_horovod)
    if horovod is not None:
        return Launch(horovod.rank(), horovod.size(), horovod)
    return Launch(popdist.getInstanceIndex(), popdist.getNumInstances() if popdist.isPopdistEnvSet() else 1)


def hardware_is_attached() -> bool:
    """Whether this machine has an IPU that PopTorch can use."""
    return bool(poptorch.ipuHardwareIsAvailable())


def _require_hardware(system: str) -> None:
    if not hardware_is_attached():
        raise DeviceError(
            "device.name ipu: PopTorch is installed, but no IPU is attached; check `gc-info -l` and IPUOF_VIPU_API_*, "
            "or use device.name ipu_model, ipu_emulator (in an environment without the SDK), cpu or cuda"
        )
    version = int(poptorch.ipuHardwareVersion())
    if version not in _HARDWARE_VERSIONS[system]:
        raise DeviceError(
            f"ipu.system {system}, but the attached IPUs are of version {version}; set ipu.system to "
            f"{' or '.join(name for name, versions in _HARDWARE_VERSIONS.items() if version in versions)}"
        )


def import_horovod() -> Optional[Any]:
    """horovod.torch, initialized, where it is installed."""
    try:
        horovod = importlib.import_module("horovod.torch")
    except ImportError:
        return None
    horovod.init()
    return horovod
