"""Loops over batches end together: processes as threads, whose words meet at a barrier."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from typing import Any, Callable, Iterator, List, Optional, Sequence

import pytest
import torch

from datasets import DataError
from experiment.guarded_loading import GuardedLoading
from experiment.lockstep import Lockstep
from experiment.stop_signals import Stopped, StopSignals


@pytest.fixture(autouse=True)
def no_handler() -> Iterator[None]:
    """As in a new process: PyTorch's handler, of loaders of other tests, is for the main thread alone."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before)


class Processes:
    """The largest word of all threads, which must all say one."""

    def __init__(self, count: int) -> None:
        self.words: List[Any] = []
        self.gathered: List[torch.Tensor] = []
        self.largest = 0
        self.barrier = threading.Barrier(count, self.compare, timeout=600)

    def compare(self) -> None:
        if isinstance(self.words[0], int):
            self.largest = max(self.words)
        else:  # in any order: threads have none
            self.gathered = self.words
        self.words = []

    def agree(self, word: int) -> int:
        self.words.append(word)
        self.barrier.wait()
        return self.largest

    def gather(self, values: torch.Tensor) -> List[torch.Tensor]:
        self.words.append(values)
        self.barrier.wait()
        return self.gathered


class Process:
    """One thread that takes `batches`, calling `then` after each."""

    def __init__(
        self, processes: Processes, batches: Sequence[Any], then: Optional[Callable[[Process], None]] = None
    ) -> None:
        self.signals = StopSignals()
        self.lockstep = Lockstep(processes, self.signals)  # of the backend, these alone
        self.batches, self.then = batches, then
        self.taken: List[Any] = []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        for batch in self.lockstep.batches(self.load()):
            self.taken.append(batch)
            if self.then is not None:
                self.then(self)

    def load(self) -> Iterator[Any]:
        for batch in self.batches:
            if isinstance(batch, Exception):
                raise batch
            yield batch


def finished(*processes: Process) -> List[List[Any]]:
    for process in processes:
        process.thread.join(timeout=600)
        assert not process.thread.is_alive()
    return [process.taken for process in processes]


def signalled_after(batches: int, number: int) -> Callable[[Process], None]:
    def then(process: Process) -> None:
        if len(process.taken) == batches:
            process.signals.received = number

    return then


def test_every_process_takes_all_of_its_batches_whatever_their_number() -> None:
    together = Processes(3)
    shares = [[1, 2, 3], [4, 5], []]
    processes = [Process(together, share) for share in shares]
    assert finished(*processes) == shares
    assert not any(process.lockstep.is_stopped for process in processes)


def test_a_signal_to_one_process_stops_all_at_the_same_batch() -> None:
    together = Processes(2)
    told = Process(together, range(9), signalled_after(3, signal.SIGTERM))
    other = Process(together, range(9))
    assert finished(told, other) == [[0, 1, 2], [0, 1, 2]]
    assert told.lockstep.signal_number == other.lockstep.signal_number == signal.SIGTERM
    assert list(other.lockstep.batches(range(5))) == []  # and it stays so: other loops do not begin


def test_a_signal_reaches_those_that_still_have_batches_from_one_that_has_none() -> None:
    together = Processes(2)
    told = Process(together, [7], signalled_after(1, signal.SIGINT))
    other = Process(together, range(9))
    assert finished(told, other) == [[7], [0]]
    assert other.lockstep.signal_number == signal.SIGINT


def test_images_that_one_process_cannot_load_stop_all_and_all_know_why() -> None:
    together = Processes(2)
    failing = Process(together, [1, DataError("a.jpg: cut short")])
    other = Process(together, range(9))
    assert finished(failing, other) == [[1], [0]]
    assert str(failing.lockstep.failure) == "a.jpg: cut short"
    assert re.fullmatch(r"in process [01]: a\.jpg: cut short", str(other.lockstep.failure))
    assert failing.lockstep.signal_number == other.lockstep.signal_number == 0


@pytest.mark.parametrize("error", [MemoryError("no room"), OSError(28, "full"), KeyError("x"), ValueError("é" * 2000)])
def test_whatever_fails_in_one_process_stops_all_between_two_steps(error) -> None:
    together = Processes(2)
    failing, other = Process(together, [1, error]), Process(together, range(9))
    assert finished(failing, other) == [[1], [0]]
    is_of_the_data = isinstance(error, (MemoryError, OSError))
    assert type(failing.lockstep.failure) is (DataError if is_of_the_data else type(error))
    assert type(error).__name__ in str(other.lockstep.failure)


def test_a_signal_ends_a_wait_for_images_at_once() -> None:
    class Hanging:
        def __iter__(self) -> Iterator[int]:
            yield 0
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1000)
            yield 1

    class Alone:
        def agree(self, word: int) -> int:
            return word

    with StopSignals() as signals:
        lockstep = Lockstep(Alone(), signals)
        assert list(lockstep.batches(Hanging())) == [0]
        assert lockstep.signal_number == signal.SIGTERM and lockstep.failure is None


def test_a_signal_between_two_batches_interrupts_nothing() -> None:
    with StopSignals() as signals:
        with signals.interrupting():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM
        with pytest.raises(Stopped), signals.interrupting():
            raise AssertionError("not reached")


def test_a_signal_counts_for_more_than_the_loading_processes_that_it_ended_too() -> None:
    together = Processes(2)
    failing = Process(together, [1, DataError("loading process 5 was ended by the signal Terminated")])
    told = Process(together, range(9), signalled_after(1, signal.SIGTERM))
    finished(failing, told)
    for process in (failing, told):
        assert (process.lockstep.signal_number, process.lockstep.failure) == (signal.SIGTERM, None)


def test_the_death_of_a_loading_process_waits_for_the_next_batch() -> None:
    def raises(number: int, frame: Any) -> None:
        raise RuntimeError("DataLoader worker (pid 5) is killed by signal: Killed. ")

    signal.signal(signal.SIGCHLD, raises)
    with GuardedLoading([1, 2]) as loading:
        assert loading.next() == 1
        os.kill(os.getpid(), signal.SIGCHLD)  # in the midst of a weight update: nothing happens
        with pytest.raises(DataError, match="loading process 5 was ended by the signal Killed: the system may"):
            loading.next()
        os.kill(os.getpid(), signal.SIGCHLD)
    assert signal.getsignal(signal.SIGCHLD) is raises
