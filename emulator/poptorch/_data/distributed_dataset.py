"""A process's share of a data set."""

from __future__ import annotations

from typing import Any, Optional

import torch


class _SubDataset(torch.utils.data.Dataset):
    """A contiguous block of a data set, one per process.

    With drop_last each process gets a block of whole combined batches, B = step * (N // (step * processes)) elements.
    Where the data set is shuffled, all blocks begin N % B elements later every other epoch.

    Args:
        dataset: a data set with a length.
        opts: says which of how many processes this is, and the random seed.
        step: the combined batch size.
        drop_last: whether only whole combined batches are wanted.

    Raises:
        AssertionError: with drop_last, fewer elements than a combined batch for each process.
    """

    def __init__(self, dataset: Any, opts: Any, step: int, drop_last: bool) -> None:
        total, processes, process = len(dataset), opts.Distributed.numProcesses, opts.Distributed.processId
        self._dataset = dataset
        self._seed: Optional[int] = opts.random_seed if opts.exists("random_seed") else None
        if drop_last:
            self._length = step * (total // (step * processes))
            if self._length == 0:
                raise AssertionError(
                    f"a data set of {total} elements is too small for {processes} processes with a combined batch size "
                    f"of {step}: each needs a combined batch, {step * processes} elements in all; use fewer processes, "
                    "a smaller combined batch, or drop_last=False"
                )
            self._base = process * self._length
            self._leftovers = total % self._length
        else:
            lengths = [total // processes + (total % processes > index) for index in range(processes)]
            self._length, self._base, self._leftovers = lengths[process], sum(lengths[:process]), 0
        # Shared memory, so that loader processes that live on see a new epoch's order.
        self._offset = torch.tensor([self._base]).share_memory_()
        self._order: Optional[torch.Tensor] = None
        self._generator: Optional[torch.Tensor] = None

    def shuffle_global_indices(self) -> None:
        """Draw the next epoch's order of the whole data set, the same one in every process.

        Raises:
            AssertionError: no random seed, so that processes would draw different orders.
        """
        generator = torch.Generator()
        if self._generator is not None:
            generator.set_state(self._generator)
        elif self._seed is None:
            raise AssertionError("Seed must be set when shuffling so that all instances draw the same order.")
        else:
            generator.manual_seed(self._seed)
        order = torch.randperm(len(self._dataset), generator=generator)
        self._generator = generator.get_state()
        if self._order is None:
            self._order = order.share_memory_()
        else:
            self._order.copy_(order)

    def swap_range(self) -> None:
        """Move the block by the left-over elements, and back the next time."""
        self._offset += self._leftovers if int(self._offset) == self._base else -self._leftovers

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self._length:
            raise IndexError(f"index {index} is outside the {self._length} elements of this process")
        position = index + int(self._offset)
        return self._dataset[position if self._order is None else int(self._order[position])]
