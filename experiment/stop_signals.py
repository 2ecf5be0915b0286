"""SIGTERM, SIGINT and what run.stop_signals adds: the first asks the loop to save and stop, the second ends at once."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType, TracebackType
from typing import Any, Dict, Iterator, Optional, Sequence, Type

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal arrived where waiting may end. Nothing that handles errors of reading and decoding may hold it up."""


class StopSignals:
    """While entered, `received` is 0 until SIGINT, SIGTERM or one of `others` arrives, then its number.

    The loop reads it between weight updates. A second signal exits at once with 128 + its number, saving nothing.

    Args:
        others: names of signals that mean the same, as batch systems send them before they end a job: SIGUSR1, SIGHUP.
    """

    def __init__(self, others: Sequence[str] = ()) -> None:
        self._numbers = (*SIGNALS, *(signal.Signals[name] for name in others))
        self.received = 0
        self._may_interrupt = False
        self._previous: Dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in self._numbers:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, the first signal raises Stopped wherever this thread is: a disk that hangs holds nothing up."""
        self._may_interrupt = True
        try:
            if self.received:
                raise Stopped
            yield
        finally:
            self._may_interrupt = False

    def _handle(self, number: int, frame: Optional[FrameType]) -> None:
        if self.received:
            os._exit(128 + number)
        self.received = number
        if self._may_interrupt:
            self._may_interrupt = False
            raise Stopped
