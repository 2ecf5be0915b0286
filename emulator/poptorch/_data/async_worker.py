"""The process that loads batches ahead into shared memory, and its end in the program.

The program sends commands, the process answers with messages; each carries the number of the last reset, so that what
was loaded before a reset is distinguished from what came after.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import traceback
from collections import deque
from typing import Any, Deque, List, NamedTuple, Optional, Tuple

import torch
import torch.multiprocessing as multiprocessing

from .._logging import logger
from ..enums import SharingStrategy
from ..errors import createPoptorchError
from ..structures import custom_parser, rebuilt, tensors_in

_CONTEXTS = {
    SharingStrategy.SharedMemory: "spawn",
    SharingStrategy.FileSystem: "spawn",
    SharingStrategy.Fork: "fork",
    SharingStrategy.ForkServer: "forkserver",
}


class LoadingJob(NamedTuple):
    """What the process receives at its start."""

    dataset: Any  # or the path of a pickle of it
    buffer_size: int
    load_indefinitely: bool
    early_preload: bool
    rebatched_size: Optional[int]
    start_method: str  # of the data set's own worker processes


class LoadingProcess:
    """The program's end: starts the process and takes its batches."""

    def __init__(
        self,
        dataset: Any,
        buffer_size: int,
        load_indefinitely: bool,
        early_preload: bool,
        sharing_strategy: SharingStrategy,
        rebatched_size: Optional[int],
    ) -> None:
        context: Any = multiprocessing.get_context(_CONTEXTS[sharing_strategy])
        if sharing_strategy == SharingStrategy.ForkServer:
            # The server imports torch once, for all loading processes; without effect where it runs already.
            context.set_forkserver_preload(["__main__", "poptorch"])
        commands, self._commands = context.Pipe(duplex=False)
        self._messages, sender = context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory() as folder:
            if sharing_strategy == SharingStrategy.FileSystem:
                path = os.path.join(folder, "dataset.pkl")
                with open(path, "wb") as file:
                    pickle.dump(dataset, file, protocol=4)
                dataset = path
            start_method = multiprocessing.get_start_method()  # the program's, not this process's
            job = LoadingJob(dataset, buffer_size, load_indefinitely, early_preload, rebatched_size, start_method)
            self._process = context.Process(target=_load, args=(job, commands, sender))
            self._process.start()
            commands.close()
            sender.close()
            self._structure, self._ring = self._receive_layout()
        self._resets = 0
        self._held: Optional[int] = None  # the buffer of the batch that the program has
        self._is_fresh = True  # no batch of this epoch was taken yet
        self._load_indefinitely = load_indefinitely

    def _receive_layout(self) -> Tuple[Any, List[torch.Tensor]]:
        try:
            structure, ring = self._messages.recv()
        except EOFError:
            self._process.join()
            raise createPoptorchError(
                "AsynchronousDataAccessor worker thread failed to start (Check above for details)"
            ) from None
        return structure, ring

    def begin_epoch(self) -> None:
        """Start the next epoch; one that was left in the middle is given up."""
        if not self._is_fresh:
            self._resets += 1
            self._held = None
            self._is_fresh = True
            self._commands.send(("reset", self._resets))
        self._commands.send(("start", self._resets))

    def next_batch(self) -> Any:
        """Return the next batch, in the structure of the data set's; the last one given out is released.

        Raises:
            StopIteration: the epoch is over.
            AssertionError: the process failed.
        """
        self._is_fresh = False
        if self._held is not None:
            self._commands.send(("free", self._held))
            self._held = None
        while True:
            try:
                reset, what, slot, rows = self._messages.recv()
            except EOFError:
                raise AssertionError("An error occurred in the data fetcher") from None
            if reset != self._resets:
                continue
            if what == "end":
                self._is_fresh = True
                raise StopIteration
            self._held = slot
            tensors = [ring[slot] if rows is None else ring[slot][:rows] for ring in self._ring]
            return _in_structure(self._structure, tensors)

    def stop(self) -> None:
        """End the process."""
        try:
            self._commands.send(("stop", 0))
        except (BrokenPipeError, OSError):
            logger.debug("the loading process had ended")
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        self._commands.close()
        self._messages.close()


def _in_structure(structure: Any, tensors: List[torch.Tensor]) -> Any:
    if isinstance(structure, torch.Tensor):
        return tensors[0]
    if isinstance(structure, tuple):  # any flat sequence comes back as a list
        return tensors
    return rebuilt(structure, tensors)


class _Loader:
    """The loading process: fills free buffers while there are any, and obeys its commands."""

    def __init__(self, job: LoadingJob, commands: Any, messages: Any) -> None:
        self._job = job
        self._commands = commands
        self._messages = messages
        self._dataset = job.dataset
        if isinstance(job.dataset, str):
            with open(job.dataset, "rb") as file:
                self._dataset = pickle.load(file)
        self._resets = 0
        self._is_started = job.early_preload
        self._iterator = iter(self._dataset)
        self._first: Optional[List[torch.Tensor]] = _flat(self._next_or_fail())
        self._free: Deque[int] = deque(range(job.buffer_size))
        self._filling: Optional[int] = None  # buffer that is being put together from smaller batches
        self._filled = 0
        self._rest: Optional[List[torch.Tensor]] = None
        self._is_waiting = False  # the epoch is over and the next one not asked for
        self._ring = [self._buffers_like(tensor) for tensor in self._first]

    def _next_or_fail(self) -> Any:
        try:
            self._example = next(self._iterator)
        except StopIteration:
            raise createPoptorchError("The Dataset is empty") from None
        return self._example

    def _buffers_like(self, tensor: torch.Tensor) -> torch.Tensor:
        shape = list(tensor.shape)
        if self._job.rebatched_size is not None:
            shape[0] = self._job.rebatched_size
        return torch.zeros([self._job.buffer_size, *shape], dtype=tensor.dtype).share_memory_()

    def run(self) -> None:
        """Send the layout, then load until told to stop."""
        assert self._first is not None
        self._messages.send((_skeleton(self._example, self._first), self._ring))
        while True:
            can_load = bool(self._free or self._filling is not None) and self._is_started and not self._is_waiting
            while self._commands.poll(0 if can_load else None):
                command, value = self._commands.recv()
                if command == "stop":
                    return
                self._obey(command, value)
                can_load = bool(self._free or self._filling is not None) and self._is_started and not self._is_waiting
                if can_load:
                    break
            if can_load:
                self._load_one()

    def _obey(self, command: str, value: int) -> None:
        if command == "free":
            self._free.append(value)
        elif command == "start":
            self._is_started = True
            self._is_waiting = False
        elif command == "reset":
            self._resets = value
            self._free = deque(range(self._job.buffer_size))
            self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._iterator = iter(self._dataset)
        self._first = self._rest = self._filling = None
        self._filled = 0

    def _next(self) -> Optional[List[torch.Tensor]]:
        tensors, self._first = self._first, None
        if tensors is None:
            tensors, self._rest = self._rest, None
        if tensors is None:
            element = next(self._iterator, _END)
            tensors = None if element is _END else _flat(element)
        return tensors

    def _load_one(self) -> None:
        tensors = self._next()
        if tensors is None:
            self._end_epoch()
            return
        size = self._job.rebatched_size
        if self._filling is None:
            self._filling, self._filled = self._free.popleft(), 0
        if size is None:
            for ring, tensor in zip(self._ring, tensors):
                ring[self._filling].copy_(tensor)
            self._hand_over(None)
            return
        rows = min(len(tensors[0]), size - self._filled)
        for ring, tensor in zip(self._ring, tensors):
            ring[self._filling][self._filled : self._filled + rows].copy_(tensor[:rows])
        if rows < len(tensors[0]):
            self._rest = [tensor[rows:] for tensor in tensors]
        self._filled += rows
        if self._filled == size:
            self._hand_over(None)

    def _hand_over(self, rows: Optional[int]) -> None:
        self._messages.send((self._resets, "batch", self._filling, rows))
        self._filling, self._filled = None, 0

    def _end_epoch(self) -> None:
        if self._filling is not None:
            if getattr(self._dataset, "rebatched_drop_last", True):
                self._free.appendleft(self._filling)
                self._filling, self._filled = None, 0
            else:
                self._hand_over(self._filled)
        self._messages.send((self._resets, "end", None, None))
        self._is_waiting = not self._job.load_indefinitely
        self._begin_epoch()


_END = object()


def _flat(element: Any) -> List[torch.Tensor]:
    tensors = tensors_in(element)
    count = len(element) if isinstance(element, (list, tuple, dict)) else len(tensors)
    if not tensors or len(tensors) != count:
        raise AssertionError(
            f"AsynchronousDataAccessor expects tensors, or flat containers of tensors, got {type(element)}"
        )
    return tensors


def _skeleton(example: Any, tensors: List[torch.Tensor]) -> Any:
    """Return the structure of an element with small tensors in it."""
    if custom_parser(example) is None and isinstance(example, (list, tuple)):
        return tuple(torch.zeros(()) for _ in tensors)
    return rebuilt(example, [torch.zeros(()) for _ in tensors])


def _load(job: LoadingJob, commands: Any, messages: Any) -> None:
    """Run the process."""
    logger.debug("AsynchronousDataAccessor worker process: %d", os.getpid())
    multiprocessing.set_start_method(job.start_method, force=True)
    try:
        _Loader(job, commands, messages).run()
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        logger.debug("AsynchronousDataAccessor worker: the program has ended")
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        sys.stderr.flush()
        raise SystemExit(1) from None
