"""Loads the images that a sampler names, as uint8 batches, in this process or in workers."""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from typing import Any, Iterator, List, Optional, Sequence, Tuple

import torch
from torch.utils.data import DataLoader, Dataset

from backends.base import Batch
from backends.batch_slots import BatchSlots, Slot
from training.parents_end import end_with

# Loading processes that give no batch for so long hang: a disk or network that holds the images is gone. No limit
# holds in an epoch that begins before all files which have to be copied are copied: that may take any time.
TIMEOUT_SECONDS = 300
_AHEAD = 2  # batches that each loading process is asked for beyond the one that was received last
_HELD = 2  # the batch in use, and the next one while its name still holds the one before


def build_loader(dataset: Any, batches: Any, workers: int, pin_memory: bool = False) -> DataLoader:
    """Return one batch for each list of indices that `batches` gives; processes hand theirs over in `BatchSlots`.

    Args:
        dataset: (image, label) by index; its `must_copy` says whether files have to be copied before all can be read.
        batches: gives lists of indices.
        workers: loading processes; 0: this one loads.
        pin_memory: whether batches lie in page-locked memory, for a GPU.
    """
    if workers == 0:
        return DataLoader(dataset, batch_sampler=batches, collate_fn=_stack, pin_memory=pin_memory, generator=_own())
    whole = _WholeBatches(dataset)
    return _SlottedLoader(
        whole,
        sampler=_Orders(batches, whole),
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        # leaves them the slots, and the dataset without a copy; elsewhere threads of the system do not bear it
        multiprocessing_context="fork" if sys.platform == "linux" else None,
        pin_memory=pin_memory,
        timeout=0 if dataset.must_copy else TIMEOUT_SECONDS,
        worker_init_fn=functools.partial(end_with_parent, os.getpid()),
        generator=_own(),
    )


@dataclass(frozen=True)
class _Order:
    """What a loading process is asked for.

    Attributes:
        indices: of the images.
        slot: for the batch; None where it is to go through the pipe.
    """

    indices: List[Any]
    slot: Optional[Slot]


class _WholeBatches(Dataset):
    """The dataset of a loading process: for an order, its batch."""

    def __init__(self, images: Any) -> None:
        self._images = images
        self.slots: BatchSlots  # set before processes are forked

    def __getitem__(self, order: _Order) -> Any:
        images, labels = zip(*[self._images[index] for index in order.indices])
        return self.slots.fill(order.slot, images, labels)


class _Orders:
    """An order for each list of indices, with a slot where one is free."""

    def __init__(self, batches: Any, whole: _WholeBatches) -> None:
        self._batches, self._whole = batches, whole

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[_Order]:
        slots = self._whole.slots
        for indices in self._batches:
            yield _Order(indices, slots.take())


class _SlottedLoader(DataLoader):
    """Each time that it is gone through has slots of its own.

    One that is left before its end never gets back those that are under way.
    """

    dataset: _WholeBatches

    def __iter__(self) -> Any:
        self.dataset.slots = BatchSlots(_AHEAD * self.num_workers + _HELD)
        return super().__iter__()


def _own() -> torch.Generator:
    """Return a generator, so that starting an epoch draws no number from torch's global one."""
    return torch.Generator()


def end_with_parent(parent: int, worker: int) -> None:
    """End with the parent process, from the start.

    PyTorch's workers look for their parent's end too, but only later: one whose parent is killed while it starts would
    wait for ever.
    """
    end_with(parent)


def _as_it_is(batch: Any) -> Any:
    return batch


def _stack(samples: Sequence[Tuple[torch.Tensor, int]]) -> Batch:
    return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])
