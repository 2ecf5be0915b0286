"""Loads the images that a sampler names, as uint8 batches, in this process or in workers."""

from __future__ import annotations

import functools
import logging
import mmap
import os
import resource
from typing import Any, Callable, List, Tuple

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info

from backends.base import Batch
from training.parents_end import end_with

# Loading processes that give no batch for so long hang: a disk or network that holds the images is gone. No limit
# holds in an epoch that begins before all files which have to be copied are copied: that may take any time.
TIMEOUT_SECONDS = 300
# Each tensor in shared memory holds an open file on both sides: a few for each loading process, and those of the rest.
_FILES_FOR_SHARING = 256
# Bytes of /dev/shm that batches leave free: each loading process that starts needs locks there, of a page each.
_SHARED_MEMORY = "/dev/shm"
_LEFT_FREE = 2**20
_is_told = mmap.mmap(-1, 1)  # one byte that this process and the loading processes it forks see


def build_loader(dataset: Any, batches: Any, workers: int, pin_memory: bool = False) -> DataLoader:
    """Return one batch for each list of indices that `batches` gives.

    Loading processes hand batches over in shared memory. Where that has no room (the /dev/shm of a container is often
    of 64 MiB), or too few files may be open, they go through pipes: slower, and any size works.

    Args:
        dataset: (image, label) by index; its `must_copy` says whether files have to be copied before all can be read.
        batches: gives lists of indices.
        workers: loading processes; 0: this one loads.
        pin_memory: whether batches lie in page-locked memory, for a GPU.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate if _may_open_files() else _collate_for_pipes,
        pin_memory=pin_memory,
        timeout=TIMEOUT_SECONDS if workers and not dataset.must_copy else 0,
        worker_init_fn=functools.partial(_end_with, os.getpid()),
        generator=torch.Generator(),  # its own: starting workers draws no number from torch's global generator
    )


def _end_with(parent: int, worker: int) -> None:
    """End with the parent process, from the start.

    PyTorch's workers look for their parent's end too, but only later: one whose parent is killed while it starts would
    wait for ever.
    """
    end_with(parent)


def _may_open_files() -> bool:
    """Whether enough files may be open for sharing memory; raises the limit as far as this user may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft not in (unlimited, hard) and soft < _FILES_FOR_SHARING:
        soft = _FILES_FOR_SHARING if hard == unlimited else min(hard, _FILES_FOR_SHARING)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft == unlimited or soft >= _FILES_FOR_SHARING


def _stack(samples: List[Tuple[torch.Tensor, int]]) -> Batch:
    return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])


def _collate(samples: List[Tuple[torch.Tensor, int]]) -> Any:
    """Return the batch of these samples; of a loading process, in shared memory or else for a pipe.

    PyTorch would move it to shared memory while sending, where a failure reaches nobody: the receiver waits.
    """
    batch = _stack(samples)
    if get_worker_info() is None:
        return batch
    if not _has_room(sum(tensor.numel() * tensor.element_size() for tensor in batch)):
        _tell_once(f"{_SHARED_MEMORY} is full")
        return _ForPipes(batch)
    try:
        for tensor in batch:
            tensor.share_memory_()
    except RuntimeError as error:
        _tell_once(str(error))
        return _ForPipes(_stack(samples))
    return batch


def _has_room(size: int) -> bool:
    """Whether `size` bytes in shared memory leave enough for what starts later."""
    try:
        disk = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return True  # elsewhere or absent: sharing itself tells
    return disk.f_bavail * disk.f_frsize >= size + _LEFT_FREE


def _collate_for_pipes(samples: List[Tuple[torch.Tensor, int]]) -> Any:
    if get_worker_info() is None:
        return _stack(samples)
    _tell_once(f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]} files may be open (ulimit -n)")
    return _ForPipes(_stack(samples))


class _ForPipes:
    """A batch that arrives as the same tensors, sent as bytes: PyTorch sends tensors by way of shared memory alone."""

    def __init__(self, batch: Batch) -> None:
        self._arrays = tuple(tensor.numpy() for tensor in batch)

    def __reduce__(self) -> Tuple[Callable[..., Batch], Tuple[np.ndarray, ...]]:
        return _tensors, self._arrays


def _tensors(*arrays: np.ndarray) -> Batch:
    images, labels = (torch.from_numpy(array) for array in arrays)
    return images, labels


def _tell_once(reason: str) -> None:
    if _is_told[0] == 0:
        _is_told[0] = 1
        logging.getLogger(__name__).warning(
            "loading processes cannot share memory (%s): batches go through pipes, which is slower; enlarge /dev/shm "
            "(docker run --shm-size) and allow %d open files to avoid it",
            reason.strip(),
            _FILES_FOR_SHARING,
        )
