"""Loads the images that a sampler names, as uint8 batches, in this process or in workers."""

from __future__ import annotations

import functools
import os
from typing import Any, List, Tuple

import torch
from torch.utils.data import DataLoader

from backends.base import Batch
from training.parents_end import end_with

# Loading processes that give no batch for so long hang: a disk or network that holds the images is gone. No limit
# holds in an epoch that begins before all files which have to be copied are copied: that may take any time.
TIMEOUT_SECONDS = 300


def build_loader(dataset: Any, batches: Any, workers: int, pin_memory: bool = False) -> DataLoader:
    """One batch for each list of indices that `batches` gives.

    Args:
        dataset: (image, label) by index; its `must_copy` says whether files have to be copied before all can be read.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        timeout=TIMEOUT_SECONDS if workers and not dataset.must_copy else 0,
        worker_init_fn=functools.partial(_end_with, os.getpid()),
        generator=torch.Generator(),  # its own: starting workers draws no number from torch's global generator
    )


def _end_with(parent: int, worker: int) -> None:
    """PyTorch's workers look for their parent's end too, but only later: one whose parent is killed while it starts
    would wait for ever."""
    end_with(parent)


def _collate(samples: List[Tuple[torch.Tensor, int]]) -> Batch:
    return torch.stack([image for image, _ in samples]), torch.tensor([label for _, label in samples])
