"""Which IPUs the emulator pretends to have: as many as a program asks for, unless the IPU Model is chosen."""

from __future__ import annotations

import os
import weakref
from typing import Any, Dict, Optional

from .errors import backend_error

MAX_IPUS = 64
EMULATED_VERSION = 2  # Mk2 (GC200, Bow)
_attached: Dict[int, Any] = {}  # IPU id -> weak reference to the executor that holds it


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
    """The version of the emulated IPUs.

    Raises:
        AssertionError: the environment chooses the IPU Model.
    """
    if not ipuHardwareIsAvailable():
        raise AssertionError("No IPU hardware available on this system")
    return EMULATED_VERSION


def check_ipu_count(ipus: int, options: Any) -> None:
    """Check the number of IPUs of all replicas of a model.

    Raises:
        Error: more than a process can have, or on hardware no power of two.
    """
    if ipus > MAX_IPUS:
        raise backend_error(
            f"Too many IPUs requested ({ipus}). Experiments that need more than {MAX_IPUS} IPUs need several processes"
        )
    rounded = 1 << (ipus - 1).bit_length()
    if rounded != ipus and not uses_ipu_model(options) and not options.auto_round_num_ipus:
        raise backend_error(
            f"The model specifies the use of {ipus} IPUs, however PopTorch must reserve a minimum of {rounded} in "
            "order to allow the model to run, because PopTorch must reserve a power of 2 or maximum of 64 IPUs per "
            "process. Please reconfigure your model to use a different number of IPUs or set "
            "poptorch.Options().autoRoundNumIPUs(True)."
        )


def acquire(executor: Any, options: Any) -> None:
    """Attach to the IPU that useIpuId() names; without a name there is always a free one.

    Raises:
        Error: another executor holds it.
    """
    if not options.exists("ipu_id"):
        return
    holder = _attached.get(options.ipu_id, lambda: None)()
    if holder is not None and holder is not executor:
        raise backend_error(f"Failed to acquire IPU with id {options.ipu_id}: another model is attached to it")
    _attached[options.ipu_id] = weakref.ref(executor)


def release(executor: Any) -> None:
    """Detach from the IPU that the executor holds."""
    for ipu_id in [key for key, holder in _attached.items() if holder() is executor]:
        del _attached[ipu_id]
