"""The one error of this room."""


class DeviceError(RuntimeError):
    """A device that was asked for and cannot be used here. The message says what is missing."""
