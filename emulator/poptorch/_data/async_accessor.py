"""AsynchronousDataAccessor: loads a data set in a process of its own, ahead of the program."""

from __future__ import annotations

import atexit
import weakref
from typing import Any, Optional

from ..enums import SharingStrategy
from ..errors import createPoptorchError
from .async_worker import LoadingProcess


class AccessibleLoader:
    """What an accessor asks a loader of combined batches, which may hold an accessor itself."""

    drop_last: bool
    _accessor: Optional[AsynchronousDataAccessor] = None
    _is_user_batch_sampler_set = False
    _combined_batch_size: Optional[int] = None

    @property
    def keeps_short_batches(self) -> bool:
        """Whether its last batch may have fewer rows than a call of the model takes."""
        return not self._is_user_batch_sampler_set and not self.drop_last and self._combined_batch_size not in (None, 1)


class AsynchronousDataAccessor:
    """Iterates over a data set that another process loads into a ring of buffers in shared memory.

    A batch is overwritten some batches later: clone what is to be kept.

    Args:
        dataset: a data set or loader whose elements are tensors, or flat containers of them.
        buffer_size: buffers in the ring.
        miss_sleep_time_in_ms: without effect: the emulator waits on a pipe instead of asking again and again.
        load_indefinitely: begin the next epoch as soon as one ends.
        early_preload: begin loading before the first iteration.
        sharing_strategy: how the data set reaches the process.
        rebatched_size: put the rows of loaded batches together to batches of this size.

    Raises:
        Error: a DataLoader that loads asynchronously itself; a data set that fails at its first element.
        AssertionError: a DataLoader that keeps short batches, without rebatched_size; rebatched_size of 1 or less.
    """

    def __init__(
        self,
        dataset: Any,
        buffer_size: int = 3,
        miss_sleep_time_in_ms: float = 0.1,
        load_indefinitely: bool = True,
        early_preload: bool = False,
        sharing_strategy: SharingStrategy = SharingStrategy.ForkServer,
        rebatched_size: Optional[int] = None,
    ) -> None:
        self._process: Optional[LoadingProcess] = None
        if isinstance(dataset, AccessibleLoader):
            if dataset._accessor is not None:
                raise createPoptorchError(
                    "The DataLoader already uses an AsynchronousDataAccessor internally. Either use the existing one "
                    "or set mode='poptorch.DataLoaderMode.Sync' in the DataLoader."
                )
            if dataset.keeps_short_batches and rebatched_size is None:
                raise AssertionError("A DataLoader with drop_last=False needs rebatched_size.")
        if rebatched_size is not None and rebatched_size <= 1:
            raise AssertionError(f"rebatched_size must be None or greater than 1, got {rebatched_size}")
        self._dataset: Any = weakref.proxy(dataset) if isinstance(dataset, AccessibleLoader) else dataset
        self._keeps = None if isinstance(dataset, AccessibleLoader) else dataset
        self.rebatched_size = rebatched_size
        self._process = LoadingProcess(
            dataset, buffer_size, load_indefinitely, early_preload, sharing_strategy, rebatched_size
        )
        atexit.register(_terminate, weakref.ref(self))

    def terminate(self) -> None:
        """End the loading process."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def __del__(self) -> None:
        if "_process" in self.__dict__:
            self.terminate()

    def __len__(self) -> int:
        if self.rebatched_size and self._keeps is not None:
            return len(self._dataset) * self._dataset.batch_size // self.rebatched_size
        return len(self._dataset)

    def __iter__(self) -> AsynchronousDataAccessor:
        self._live().begin_epoch()
        return self

    def __next__(self) -> Any:
        return self._live().next_batch()

    def _live(self) -> LoadingProcess:
        if self._process is None:
            raise AssertionError("The AsynchronousDataAccessor has been terminated")
        return self._process


def _terminate(accessor: Any) -> None:
    alive = accessor()
    if alive is not None:
        alive.terminate()
