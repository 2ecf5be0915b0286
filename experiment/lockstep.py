"""Batches that several processes take or leave together, whichever of them was asked to stop or cannot go on."""

from __future__ import annotations

from typing import Any, Iterable, Iterator, Optional

import torch

from backends import Session
from datasets import DataError
from experiment.guarded_loading import GuardedLoading
from experiment.stop_signals import Stopped, StopSignals

_MESSAGE_BYTES = 1000  # of an error that is sent to other processes
# What a process says before each batch. The largest word of any process is what all of them do.
_DONE, _GOING, _FAILED, _SIGNALLED = range(4)  # _SIGNALLED + number of the signal


class Lockstep:
    """Ends loops over batches in all processes at the same batch, between two calls of the device.

    A process that has no batch left, because its share of the images is smaller, takes part until the others have none.
    A signal counts for more than images that cannot be loaded: whoever signals a whole group of processes ends those
    that load images too.

    Args:
        session: whose processes agree.
        signals: of this process.

    Attributes:
        signal_number: the signal that stopped all processes; 0 for none.
        failure: why images could not be loaded, here or in another process; None where all could. An exception that is
            no DataError is a fault of the program in this process.
    """

    def __init__(self, session: Session, signals: StopSignals) -> None:
        self._session, self._signals = session, signals
        self.signal_number = 0
        self.failure: Optional[Exception] = None

    @property
    def is_stopped(self) -> bool:
        """Whether loops ended before their batches did."""
        return self.signal_number != 0 or self.failure is not None

    def batches(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield this process's batches, until there are none left or `is_stopped`. Every process must iterate."""
        with GuardedLoading(batches) as loading:
            while not self.is_stopped:
                batch: Any = None
                failure: Optional[Exception] = None
                try:
                    with self._signals.interrupting():
                        batch = loading.next()
                except Stopped:
                    pass  # _agree says it
                except Exception as error:  # whatever it is, the others are notified and the run is saved
                    failure = error
                word = self._agree(_FAILED if failure is not None else _DONE if batch is None else _GOING)
                if word == _DONE:
                    return
                if word == _FAILED:
                    self.failure = self._failure_of_all(failure)
                elif word > _FAILED:
                    self.signal_number = word - _SIGNALLED
                elif batch is not None:
                    yield batch

    def _failure_of_all(self, failure: Optional[Exception]) -> Exception:
        """Return this process's failure, or else what that of the first process that has one says."""
        message = torch.zeros(_MESSAGE_BYTES, dtype=torch.uint8)
        if failure is not None:
            text = str(failure) if isinstance(failure, DataError) else f"{type(failure).__name__}: {failure}"
            encoded = text.encode(errors="backslashreplace")[:_MESSAGE_BYTES]
            message[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
        texts = [bytes(each.tolist()).rstrip(b"\0").decode(errors="replace") for each in self._session.gather(message)]
        if failure is not None:
            return failure
        process, text = next((process, text) for process, text in enumerate(texts) if text)
        return DataError(f"in process {process}: {text}")

    def _agree(self, word: int) -> int:
        received = self._signals.received
        return self._session.agree(_SIGNALLED + received if received else word)
