"""The error of a device that cannot be used."""


class DeviceError(RuntimeError):
    """A device that was asked for and cannot be used here. The message says what is missing."""
