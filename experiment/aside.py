"""Work that goes on beside the training: writing a checkpoint takes seconds, and waits for disks."""

from __future__ import annotations

import threading
from typing import Callable, Optional


class Aside:
    """One piece of work at a time in a thread of its own: the next waits for the one before.

    So no more than one checkpoint is in memory beside the training. An error of the work is raised where `check`,
    `wait` or `start` is called next.
    """

    def __init__(self) -> None:
        self._thread: Optional[threading.Thread] = None
        self._error: Optional[BaseException] = None

    def start(self, work: Callable[[], object]) -> None:
        """Start `work`, which must not read what the training changes.

        Raises:
            Exception: the error of the work before.
        """
        self.wait()
        # No daemon: the process does not end in the middle of it.
        self._thread = threading.Thread(target=self._do, args=(work,), name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise the error of work that has ended with one; wait for nothing."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Wait until the work is done.

        Raises:
            Exception: its error.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:  # whatever it is, the training is told
            self._error = error
