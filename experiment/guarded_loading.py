"""What a failure of a loading process means, in one line.

PyTorch's loading processes end in many ways: an error in one arrives with its traceback as text, one that dies raises
in the main process wherever that is at the moment (from a signal handler), or shows as a broken connection, one that
hangs as a timeout. Which of these it is depends on the moment; how the process ended does not, so that is looked up.
"""

from __future__ import annotations

import contextlib
import re
import signal
import time
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Iterable, Iterator, Optional, Sequence, Type

from datasets.errors import DataError

SIGNAL_SECONDS = 1.0  # a process that ended is known to be so before that
END_SECONDS = 20.0  # after its connection broke, for a process to end: it is doing so
ADVICE = {
    "Killed": "the system may have been out of memory: lower data.workers or batch.global_batch_size",
    "Bus error": "shared memory may be full: enlarge /dev/shm or lower data.workers",
    "Segmentation fault": "a library failed: --set data.workers=0 shows where",
    "Terminated": "a user or the batch system killed it",
}
BROKEN = (EOFError, ConnectionError)
KILLED = re.compile(r"DataLoader worker \(pid (\d+)\) is killed by signal: ([^.]+)")
EXITED = re.compile(r"DataLoader worker \(pid (\d+)\) exited unexpectedly with exit code (\d+)")
ENDED = re.compile(r"DataLoader worker \(pid\(s\) ([\d, ]+)\) exited unexpectedly")
TIMED_OUT = re.compile(r"DataLoader timed out after ([\d.]+) seconds")
IN_WORKER = re.compile(r"^Caught (\w+) in DataLoader worker process (\d+)")
PLACE = re.compile(r'^  File "(.+)", line (\d+), in ', re.MULTILINE)


class GuardedLoading:
    """Takes batches from a loader so that the death of a loading process is heard of in `next` alone.

    PyTorch raises it from the handler of SIGCHLD, wherever the main process is: possibly with half of the weights
    updated, and other processes waiting for this one. Here the signal waits until the next batch is asked for.

    Used as a context, by the main thread.

    Args:
        batches: a DataLoader, or anything that iterates.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self._is_held = False
        self._iterator: Optional[Iterator[Any]] = None
        self._handler: Any = None
        self._processes: Sequence[BaseProcess] = ()

    def __enter__(self) -> GuardedLoading:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        # After the last batch they have ended; before it they may hang, and PyTorch waits 5 seconds for each.
        for process in self._processes:
            process.terminate()
        if callable(self._handler):
            signal.signal(signal.SIGCHLD, self._handler)

    def next(self) -> Any:
        """Return the next batch, or None after the last.

        Raises:
            DataError: an image cannot be used, or a loading process failed; see explained_loading.
        """
        try:
            if self._iterator is None:
                self._iterator = self._start()
                # PyTorch gives no other way to them; what loads in this process, or is not a DataLoader, has none.
                self._processes = getattr(self._iterator, "_workers", ())
                self._hold()
            with explained_loading(self._processes):
                try:
                    if callable(self._handler):
                        signal.signal(signal.SIGCHLD, self._handler)
                        if self._is_held:
                            self._is_held = False
                            self._handler(signal.SIGCHLD, None)
                    return next(self._iterator, None)
                finally:
                    self._hold()  # inside: PyTorch's handler may not raise while a failure is being explained
        except (MemoryError, OSError) as error:
            raise DataError(f"while images were loaded: {type(error).__name__}: {error}") from error

    def _start(self) -> Iterator[Any]:
        """Start the loading processes, and with them PyTorch's handler."""
        try:
            iterator = iter(self._batches)
        except OSError as error:
            raise DataError(
                f"loading processes cannot be started ({error}): is there room in /dev/shm, and may enough files and "
                "processes be open (ulimit -n, -u)? --set data.workers=0 does without them"
            ) from error
        self._handler = signal.getsignal(signal.SIGCHLD)
        return iterator

    def _hold(self) -> None:
        if callable(self._handler):
            signal.signal(signal.SIGCHLD, self._keep)

    def _keep(self, number: int, frame: Optional[FrameType]) -> None:
        self._is_held = True


def guarded(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches; errors are those of GuardedLoading.next."""
    with GuardedLoading(batches) as loading:
        yield from iter(loading.next, None)


@contextlib.contextmanager
def explained_loading(processes: Sequence[BaseProcess] = ()) -> Iterator[None]:
    """Turn every failure of a loading process inside into a DataError of one line; other errors pass.

    Args:
        processes: those that load, where they are known.

    Raises:
        DataError: what happened to which process, and what may help.
    """
    try:
        yield
    except Exception as error:
        explanation = told_by_a_process(str(error)) or (explain_end(processes) if tells_of_an_end(error) else None)
        if explanation is None and isinstance(error, (RuntimeError, *BROKEN)):
            explanation = explain(latest_error(error))
        if explanation is None:
            raise
        raise DataError(explanation) from error


def tells_of_an_end(error: BaseException) -> bool:
    """Whether `error` may be what the end of a loading process looks like from here."""
    text = str(error)
    is_broken = isinstance(error, BROKEN) and IN_WORKER.match(text) is None  # and not one that a process reports
    return is_broken or any(words.search(text) for words in (KILLED, EXITED, ENDED))


def explain_end(processes: Sequence[BaseProcess]) -> Optional[str]:
    """Return how one of these processes ended that should not have; None if all go on."""
    if not processes or not wait([process.sentinel for process in processes], END_SECONDS):
        return None
    ended = []
    for process in processes:
        if wait([process.sentinel], 0):
            process.join()  # it closed everything, and is ending
            ended.append((process.exitcode or 0, process.pid))
    for code, number in sorted(ended):  # signals are negative: the graver reason
        if code < 0:
            return killed_by(number, signal.strsignal(-code))
        if code > 0:
            return f"loading process {number} exited with code {code}; --set data.workers=0 shows where"
    return None


def killed_by(process: Any, name: Optional[str]) -> str:
    advice = ADVICE.get(name or "", "continue with --resume")
    return f"loading process {process} was ended by the signal {name}: {advice}"


def latest_error(error: BaseException) -> BaseException:
    """Return what a broken connection leads to: the error that the end of the process raises, if it does."""
    if isinstance(error, (EOFError, ConnectionResetError)):
        try:
            time.sleep(SIGNAL_SECONDS)  # and not later, in the midst of saying what happened
        except RuntimeError as later:
            return later
    return error


def explain(error: BaseException) -> Optional[str]:
    """Return what `error`, or what caused it, says about a loading process; None if it is about something else."""
    killed: Optional[BaseException] = error
    while killed is not None:  # the signal's name is often in the error before
        found = KILLED.search(str(killed))
        if found:
            return killed_by(found[1], found[2].strip())
        killed = killed.__cause__ or killed.__context__
    found = EXITED.search(str(error))
    if found:
        return f"loading process {found[1]} exited with code {found[2]}; --set data.workers=0 shows where"
    found = ENDED.search(str(error))
    if found:
        return f"loading process {found[1]} ended without a message; --set data.workers=0 shows where"
    found = TIMED_OUT.search(str(error))
    if found:
        return (
            f"no images for {float(found[1]):g} seconds: a loading process hangs; is the disk or the network that "
            "holds the images there? --set data.workers=0 shows where"
        )
    if isinstance(error, (EOFError, ConnectionResetError)):
        return f"the connection to a loading process broke ({type(error).__name__}): it ended; continue with --resume"
    return None


def told_by_a_process(message: str) -> Optional[str]:
    """Return in one line what a loading process reported with its traceback; None if `message` comes from none."""
    found = IN_WORKER.match(message)
    if found is None:
        return None
    name, process = found.groups()
    last = list(re.finditer(rf"^(?:[\w.]+\.)?{name}(?:: |$)", message, re.MULTILINE))
    reason = message[last[-1].end() :].strip() if last else ""
    if last and last[-1].group().startswith(f"{DataError.__module__}."):
        return f"in loading process {process}: {reason}"
    places = PLACE.findall(message)
    place = f" ({Path(places[-1][0]).name}:{places[-1][1]})" if places else ""
    what = f"{name}: {' '.join(reason.split())}" if reason else name
    advice = "lower data.workers" if name == "MemoryError" else "--set data.workers=0 shows where"
    return f"in loading process {process}: {what}{place}; {advice}"
