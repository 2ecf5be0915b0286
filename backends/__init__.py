"""WHERE a run executes: the choice of a device, and one file per kind of it."""

from backends.base import Backend
from backends.errors import DeviceError
from configs.device_section import DeviceConfig

__all__ = ["Backend", "DeviceError", "choose_backend"]


def choose_backend(config: DeviceConfig) -> Backend:
    """The backend of `config.name`; for "auto" the best device found. Its `reason` says why.

    Raises:
        DeviceError: the device is not here.
    """
    if config.name.startswith("ipu"):
        raise DeviceError(
            f"device.name {config.name} needs an IPU backend, which this version does not have; "
            "use device.name auto, cpu or cuda"
        )
    from backends.torch_native import TorchBackend  # imported here: other devices need none of it

    return TorchBackend(config)
