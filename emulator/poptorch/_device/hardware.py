"""Which IPUs the emulator pretends to have: as many as a program asks for, unless the IPU Model is chosen."""

from __future__ import annotations

import itertools
import os
import weakref
from typing import Any, Dict, Optional

from .._logging import logger
from ..enums import ConnectionType
from ..errors import backend_error

MAX_IPUS = 64
EMULATED_VERSION = 2  # Mk2 (GC200, Bow)
_attached: Dict[int, Any] = {}  # device -> weak reference to the executor that holds it


def uses_ipu_model(options: Optional[Any] = None) -> bool:
    """Whether the IPU Model stands in for hardware: as the option says, else one of the two environment variables."""
    if options is not None and options.exists("use_model"):
        return bool(options.use_model)
    for variable in ("POPTORCH_IPU_MODEL", "POPTORCH_SMALL_IPU_MODEL"):
        if os.environ.get(variable, "") not in ("", "0"):
            return True
    return False


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Whether there are this many IPUs; False where the environment chooses the IPU Model."""
    return not uses_ipu_model() and num_ipus <= MAX_IPUS


def ipuHardwareVersion() -> int:
    """Return the version of the emulated IPUs.

    Raises:
        AssertionError: the environment chooses the IPU Model.
    """
    if not ipuHardwareIsAvailable():
        raise AssertionError("No IPU hardware available on this system")
    return EMULATED_VERSION


def check_ipu_model(options: Any) -> None:
    """Check that the IPU Model can do what the options want.

    Raises:
        Error: it cannot.
    """
    if options.connection_type == ConnectionType.Never:
        raise backend_error(
            "ConnectionType.Never / poptorch.Options.useOfflineIpuTarget not supported for the IPU model"
        )
    if options._Popart.options["instrumentWithHardwareCycleCounter"]:
        raise backend_error("Cycle count logging is only supported on actual IPU hardware.")
    if options.Distributed.numProcesses > 1:
        raise backend_error("Only IPU Hardware devices supported for distributed replicated graphs, not the IPU model")
    if options.replication_factor > 1:
        raise backend_error(
            f"Replicated top level graphs are not supported on the IPU model (replication factor "
            f"{options.replication_factor}): use one replica there, and more gradient accumulation or device iterations"
        )


def check_ipu_count(ipus: int, options: Any) -> None:
    """Check the number of IPUs of all replicas of a model.

    Raises:
        Error: more than a process can have, or on attached hardware no power of two.
    """
    if ipus > MAX_IPUS:
        raise backend_error(
            f"Too many IPUs requested ({ipus}). Experiments that need more than {MAX_IPUS} IPUs need several processes"
        )
    rounded = 1 << (ipus - 1).bit_length()
    is_hardware = options.connection_type != ConnectionType.Never and not uses_ipu_model(options)
    if rounded != ipus and is_hardware and not options.auto_round_num_ipus:
        raise backend_error(
            f"The model specifies the use of {ipus} IPUs, however PopTorch must reserve a minimum of {rounded} in "
            "order to allow the model to run, because PopTorch must reserve a power of 2 or maximum of 64 IPUs per "
            "process. Please reconfigure your model to use a different number of IPUs or set "
            "poptorch.Options().autoRoundNumIPUs(True)."
        )


def choose(executor: Any, options: Any, ipus: int) -> None:
    """Choose a device to compile for; with ConnectionType.Always it is attached at once.

    Raises:
        Error: as attach().
    """
    if options.connection_type == ConnectionType.Always:
        logger.debug("Acquired %d IPU(s): running on device Id %d.", ipus, _find(executor, options))
        attach(executor, options)
    elif options.connection_type == ConnectionType.OnDemand and not options.exists("ipu_id"):
        logger.debug("Acquired %d IPU(s): running on device Id 0.", ipus)


def attach(executor: Any, options: Any) -> None:
    """Attach to the device that useIpuId() names, else to the first free one: there always is one.

    Raises:
        Error: another executor holds the named one.
    """
    if any(holder() is executor for holder in _attached.values()):
        return
    device = _find(executor, options)
    _attached[device] = weakref.ref(executor)
    logger.debug("Attached to device %d", device)


def _find(executor: Any, options: Any) -> int:
    held = {device for device, holder in _attached.items() if holder() is not None}
    if not options.exists("ipu_id"):
        return next(device for device in itertools.count() if device not in held)
    if options.ipu_id in held:
        raise backend_error(f"Failed to acquire IPU with id {options.ipu_id}: another model is attached to it")
    return int(options.ipu_id)


def release(executor: Any) -> None:
    """Detach from the device that the executor holds."""
    for device in [key for key, holder in _attached.items() if holder() in (executor, None)]:
        if _attached.pop(device)() is not None:
            logger.debug("Detached from device %d", device)
