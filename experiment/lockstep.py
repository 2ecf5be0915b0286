"""Batches that several processes take or leave together, whichever of them was told to stop or cannot go on."""

from __future__ import annotations

from typing import Any, Iterable, Iterator, Optional

from backends import Backend
from datasets import DataError
from experiment.guarded_loading import GuardedLoading
from experiment.stop_signals import StopSignals

# What a process says before each batch. The largest word of any process is what all of them do.
_DONE, _GOING, _FAILED, _SIGNALLED = range(4)  # _SIGNALLED + number of the signal


class Lockstep:
    """Ends loops over batches in all processes at the same batch, between two calls of the device.

    A process that has no batch left, because its share of the images is smaller, takes part until the others have none.
    A signal counts for more than images that cannot be loaded: whoever signals a whole group of processes ends those
    that load images too.

    Args:
        backend: whose processes agree.
        signals: of this process.

    Attributes:
        signal_number: the signal that stopped all processes; 0 for none.
        failure: why images could not be loaded, here or in another process; None where all could.
    """

    def __init__(self, backend: Backend, signals: StopSignals) -> None:
        self._backend, self._signals = backend, signals
        self.signal_number = 0
        self.failure: Optional[DataError] = None

    @property
    def is_stopped(self) -> bool:
        """Whether loops ended before their batches did."""
        return self.signal_number != 0 or self.failure is not None

    def batches(self, batches: Iterable[Any]) -> Iterator[Any]:
        """This process's batches, until there are none left or `is_stopped`. Every process must iterate."""
        with GuardedLoading(batches) as loading:
            while not self.is_stopped:
                batch, failure = None, None
                try:
                    batch = loading.next()
                except DataError as error:
                    failure = error
                word = self._agree(_FAILED if failure is not None else _DONE if batch is None else _GOING)
                if word == _DONE:
                    return
                if word == _FAILED:
                    self.failure = failure or DataError("the images of another process cannot be loaded: see its error")
                elif word > _FAILED:
                    self.signal_number = word - _SIGNALLED
                elif batch is not None:
                    yield batch

    def _agree(self, word: int) -> int:
        received = self._signals.received
        return self._backend.agree(_SIGNALLED + received if received else word)
