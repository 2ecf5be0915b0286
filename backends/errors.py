"""The errors of a device that cannot be used, and of a process that is gone."""

from configs.exit_codes import LOST_PROCESS, REFUSED, ExplainedError


class DeviceError(ExplainedError, RuntimeError):
    """A device that was asked for and cannot be used here. The message says what is missing."""

    exit_code = REFUSED


class LostProcessError(ExplainedError, RuntimeError):
    """Another process of the run has ended or cannot be reached. The message says what to do."""

    exit_code = LOST_PROCESS
