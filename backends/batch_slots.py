"""Memory through which loading processes hand batches over: slots of one batch each, used again and again.

A batch in a slot is neither pickled nor copied once more, and its pages are there already: making new ones for each
batch took a quarter as long as decoding its images. All slots are one open file that is in no folder: neither the size
of /dev/shm nor the limit of open files matters, and nothing is left of them however the processes end.

The first batches go through pipes, since their size is that of a slot. So does any that finds no slot: a receiver may
keep batches as long as it likes.
"""

from __future__ import annotations

import itertools
import logging
import mmap
import os
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any, Callable, Deque, List, MutableMapping, Optional, Sequence, Tuple

import numpy as np
import torch

from backends.base import Batch
from backends.host_memory import open_memory_file


@dataclass(frozen=True)
class Slot:
    """A place for one batch.

    Attributes:
        number: among its BatchSlots.
        size: in bytes, a multiple of the page size.
    """

    number: int
    size: int


class BatchSlots:
    """Slots of this process and of those that it forks from now on.

    This process takes slots and names them to the others, which fill them. A slot that has arrived is free again as
    soon as nothing holds the tensor in it.

    Args:
        count: of the slots.
    """

    def __init__(self, count: int) -> None:
        self._count, self._slot_size = count, 0
        self._free: Deque[int] = deque()  # other threads may append
        self._memory: Optional[mmap.mmap] = None
        self._file: Optional[int] = None
        try:
            self._file = open_memory_file("batches")
            weakref.finalize(self, os.close, self._file)
        except OSError as error:
            _tell_once(error)
        self._number = next(_numbers)
        _of_this_process[self._number] = self

    def take(self) -> Optional[Slot]:
        """Return a free slot, if there is one."""
        if self._memory is None and self._slot_size > 0 and self._file is not None:
            self._make_memory(self._file)
        return Slot(self._free.popleft(), self._slot_size) if self._free else None

    def _make_memory(self, file: int) -> None:
        size = self._count * self._slot_size
        try:
            os.posix_fallocate(file, 0, size)  # where memory is short, an error here and not a signal later
            self._memory = mmap.mmap(file, size)
            self._free.extend(range(self._count))
        except (OSError, ValueError) as error:
            self._file = None
            _tell_once(error)

    def fill(self, slot: Optional[Slot], images: Sequence[torch.Tensor], labels: Sequence[int]) -> Any:
        """Return what arrives as a batch in the process that took a slot for it.

        Args:
            slot: None where there was none.
            images: (C, H, W) each, uint8.
            labels: one for each.
        """
        shape = (len(images), *images[0].shape)
        size = images[0].numel() * len(images)
        numbers = np.array(labels, dtype=np.int64)
        if slot is None or size > slot.size:
            return _Sent(_receive_bytes, (self._number, slot, torch.stack(list(images)).numpy(), numbers))
        torch.stack(list(images), out=torch.from_numpy(self._room(slot, size)).view(shape))
        return _Sent(_receive, (self._number, slot, shape, numbers))

    def _room(self, slot: Slot, size: int) -> np.ndarray:
        if self._memory is None:  # this process was forked before there was any
            assert self._file is not None
            self._memory = mmap.mmap(self._file, self._count * slot.size)
        return np.frombuffer(self._memory, dtype=np.uint8, count=size, offset=slot.number * slot.size)

    def images(self, slot: Slot, shape: Tuple[int, ...]) -> torch.Tensor:
        """Return what lies in a slot, which is free again when nothing holds it.

        Args:
            slot: that has arrived.
            shape: of the images together.
        """
        room = self._room(slot, int(np.prod(shape)))
        weakref.finalize(room, self._free.append, slot.number).atexit = False
        return torch.from_numpy(room).view(shape)

    def do_without(self, slot: Optional[Slot], size: int) -> None:
        """Take notice of a batch that has arrived outside a slot: the first one has the size of slots.

        Args:
            slot: which was taken for it and is free again; None where there was none.
            size: of its images in bytes.
        """
        if slot is not None:
            self._free.append(slot.number)
        self._slot_size = self._slot_size or -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


class _Sent:
    """A batch that arrives as what `receive` makes of the arguments."""

    def __init__(self, receive: Callable[..., Batch], arguments: Tuple[Any, ...]) -> None:
        self._reduced = receive, arguments

    def __reduce__(self) -> Tuple[Callable[..., Batch], Tuple[Any, ...]]:
        return self._reduced


def _receive(number: int, slot: Slot, shape: Tuple[int, ...], labels: np.ndarray) -> Batch:
    return _of_this_process[number].images(slot, shape), torch.from_numpy(labels)


def _receive_bytes(number: int, slot: Optional[Slot], images: np.ndarray, labels: np.ndarray) -> Batch:
    _of_this_process[number].do_without(slot, images.nbytes)
    return torch.from_numpy(images), torch.from_numpy(labels)


_numbers = itertools.count()
_of_this_process: MutableMapping[int, BatchSlots] = weakref.WeakValueDictionary()
_told: List[Exception] = []


def _tell_once(error: Exception) -> None:
    if not _told:
        _told.append(error)
        logging.getLogger(__name__).warning(
            "loading processes cannot share memory (%s): batches go through pipes, which is slower", error
        )
