"""The errors of a device that cannot be used, and of a process that is gone."""


class DeviceError(RuntimeError):
    """A device that was asked for and cannot be used here. The message says what is missing."""


class LostProcessError(RuntimeError):
    """Another process of the run has ended or cannot be reached. The message says what to do."""
