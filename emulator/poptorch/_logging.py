"""The logger "poptorch::python", its levels by name, and POPTORCH_LOG_LEVEL."""

from __future__ import annotations

import copy
import logging
import os
import sys
from typing import Any, Union

logger = logging.getLogger("poptorch::python")

LEVELS = {
    "TRACE": (0, logging.DEBUG),
    "TRACE_ALL": (0, logging.DEBUG),
    "DEBUG": (1, logging.DEBUG),
    "DEBUG_IR": (1, logging.DEBUG),
    "INFO": (2, logging.INFO),
    "WARN": (3, logging.WARNING),
    "ERR": (4, logging.ERROR),
    "OFF": (6, logging.CRITICAL),
}
INTERNAL_LEVELS = ("TRACE_ALL", "DEBUG_IR")


class _LowerCaseLevel(logging.Formatter):
    """`[time] [poptorch::python] [warning] text`."""

    def __init__(self) -> None:
        super().__init__("[%(asctime)s.%(msecs)03d] [%(name)s] [%(levelname)s] %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        own = copy.copy(record)  # other handlers get the same record
        own.levelname = record.levelname.lower()
        return super().format(own)


class _CurrentStderr(logging.StreamHandler):
    """A handler that looks sys.stderr up at each message, so that a redirected one is used."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, value: Any) -> None:
        """Ignored: the stream is always the current sys.stderr."""


def setLogLevel(level: Union[str, int]) -> None:
    """Set how much is logged: a level's name, or its number (TRACE 0, DEBUG 1, INFO 2, WARN 3, ERR 4, OFF 6).

    Raises:
        ValueError: no level of this name or number.
    """
    logger.setLevel(_level(level))


def level_of_environment() -> int:
    """Return the level that POPTORCH_LOG_LEVEL asks for, in the words of the logging module."""
    return _level(os.environ.get("POPTORCH_LOG_LEVEL", "WARN"))


def _level(level: Union[str, int]) -> int:
    public = [name for name in LEVELS if name not in INTERNAL_LEVELS]
    if isinstance(level, int):
        names = [name for name in public if LEVELS[name][0] == level]
        if not names:
            raise ValueError(f"Invalid log level integer {level}; valid are {sorted({LEVELS[n][0] for n in public})}")
        level = names[0]
    if level not in LEVELS:
        raise ValueError(f"Unknown log level: {level}. Valid values are {', '.join(sorted(public))}")
    return LEVELS[level][1]


def _install() -> None:
    handler = _CurrentStderr()
    handler.setFormatter(_LowerCaseLevel())
    logger.addHandler(handler)
    logger.setLevel(level_of_environment())


_install()
