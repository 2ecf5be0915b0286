"""Functions under PopTorch's private names that programs reach for: containers of tensors, and joining batches."""

from __future__ import annotations

from typing import Any, Generator, Iterator, List

import torch

from .structures import custom_parser as getCustomParser
from .structures import rebuilt as reconstructTensorStructure
from .structures import tensors_in as flattenTensorStructure

__all__ = [
    "combine_batch_tensors_gen",
    "combined_batch_generator",
    "flattenTensorStructure",
    "getCustomParser",
    "reconstructTensorStructure",
]


def combine_batch_tensors_gen(tensors: List[List[torch.Tensor]]) -> Generator[torch.Tensor, None, None]:
    """Join batches along their rows: for each tensor of a batch, those of all batches one after the other."""
    for column in zip(*tensors):
        yield torch.cat(column)


def combined_batch_generator(
    dataloader_iterator: Iterator[Any], num_batches_to_combine: int, drop_last: bool = True
) -> Iterator[Any]:
    """So many batches at a time, joined into one; a shorter rest only if drop_last is False."""
    pending: List[Any] = []
    for batch in dataloader_iterator:
        pending.append(batch)
        if len(pending) == num_batches_to_combine:
            yield _joined(pending)
            pending = []
    if pending and not drop_last:
        yield _joined(pending)


def _joined(batches: List[Any]) -> Any:
    columns = [flattenTensorStructure(batch) for batch in batches]
    return reconstructTensorStructure(batches[-1], combine_batch_tensors_gen(columns))
