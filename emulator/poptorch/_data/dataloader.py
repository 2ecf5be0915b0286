"""DataLoader: batches for one call of a model, which runs several micro batches on several replicas."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Optional, Sequence, Union

import torch

from .._logging import logger
from .._utils import combined_batch_generator
from ..enums import DataLoaderMode
from ..errors import createPoptorchError
from ..options import Options
from .async_accessor import AccessibleLoader, AsynchronousDataAccessor
from .distributed_dataset import _SubDataset


class DataLoader(torch.utils.data.DataLoader, AccessibleLoader):  # torch's first, as in PopTorch's own
    """torch's DataLoader with batches of batch_size x device iterations x input groups x gradient accumulation.

    Args:
        options: frozen from here on; give the same factors to the model.
        dataset: indexed or iterable.
        batch_size: the micro batch; None: elements as they are.
        shuffle: None: no.
        num_workers: loader processes.
        drop_last: whether a last, short batch is left out.
        persistent_workers: None: where there are any.
        auto_distributed_partitioning: give each of several processes its own block of an indexed data set.
        mode: load here, in a process of its own, or there with full batches reassembled.
        async_options: for the AsynchronousDataAccessor.
        rebatched_worker_size: rows that a worker loads at a time under AsyncRebatched.
        batch_sampler: index batches; so many of them as a call needs are joined.
        kwargs: for torch's DataLoader.

    Raises:
        Error: batch_sampler together with batch_size, shuffle or partitioning.
        AssertionError: shuffling over processes without a seed; partitioning an iterable data set, or no batch_size.
    """

    def __init__(
        self,
        options: Options,
        dataset: Any,
        batch_size: Optional[int] = 1,
        shuffle: Optional[bool] = None,
        num_workers: int = 0,
        drop_last: bool = True,
        persistent_workers: Optional[bool] = None,
        auto_distributed_partitioning: bool = True,
        mode: DataLoaderMode = DataLoaderMode.Sync,
        async_options: Optional[Dict[str, Any]] = None,
        rebatched_worker_size: Optional[int] = None,
        batch_sampler: Optional[Union[torch.utils.data.Sampler, Iterable[Sequence[int]]]] = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(options, Options):
            raise AssertionError(f"options must be poptorch.Options, got {type(options)}")
        options._freeze()
        self._options = options
        self._accessor: Optional[AsynchronousDataAccessor] = None
        self._is_user_batch_sampler_set = batch_sampler is not None
        self.rebatched_drop_last = drop_last
        processes = options.Distributed.numProcesses
        is_partitioned = processes > 1 and auto_distributed_partitioning
        if batch_sampler is not None:
            if batch_size != 1 or shuffle:
                raise createPoptorchError("`batch_sampler` option is mutually exclusive with batch_size, shuffle.")
            if is_partitioned:
                raise createPoptorchError(
                    "`batch_sampler` option is mutually exclusive with auto_distributed_partitioning=True."
                )
            batch_size = getattr(batch_sampler, "batch_size", batch_size)
        self._num_batches_to_combine = None if batch_size is None else _batches_per_call(options)
        self._combined_batch_size = None if batch_size is None else batch_size * _batches_per_call(options)
        self._shuffles_globally = False
        if isinstance(dataset, torch.utils.data.IterableDataset):
            if is_partitioned:
                raise AssertionError("auto_distributed_partitioning not supported for IterableDataset")
            if num_workers > 1 and "worker_init_fn" not in kwargs:
                logger.warning(
                    "IterableDataset used with num_workers=%d but no worker_init_fn: every element comes %d times",
                    num_workers,
                    num_workers,
                )
        else:
            if not drop_last:
                self._warn_of_short_batch(dataset, batch_sampler, processes)
            if is_partitioned:
                dataset = self._partition(dataset, bool(shuffle), drop_last)
                self._shuffles_globally, shuffle = bool(shuffle), False
        rows: Optional[int] = 1 if self._is_user_batch_sampler_set else self._combined_batch_size
        rebatched_size = self._rebatched_size(mode, drop_last)
        if rebatched_size is not None:
            rows = _worker_rows(rows, rebatched_worker_size, rebatched_size)
        is_torch_dropping = drop_last and rebatched_size is None and not self._is_user_batch_sampler_set
        super().__init__(
            dataset,
            batch_size=rows,
            shuffle=shuffle if self._is_user_batch_sampler_set else bool(shuffle),
            batch_sampler=batch_sampler,  # type: ignore[arg-type]
            num_workers=num_workers,
            drop_last=is_torch_dropping and rows is not None,
            persistent_workers=num_workers > 0 if persistent_workers is None else persistent_workers,
            **kwargs,
        )
        if mode != DataLoaderMode.Sync:
            arguments = async_options or {}
            if "rebatched_size" in arguments:
                raise AssertionError("rebatched_size in async_options: use DataLoaderMode.AsyncRebatched instead")
            self._accessor = AsynchronousDataAccessor(self, **arguments, rebatched_size=rebatched_size)

    def _rebatched_size(self, mode: DataLoaderMode, drop_last: bool) -> Optional[int]:
        """Rows of the batches that the accessor puts together; None: it hands on what it gets."""
        is_large = self._combined_batch_size is not None and self._combined_batch_size > 1
        if mode == DataLoaderMode.AsyncRebatched or (mode == DataLoaderMode.Async and not drop_last and is_large):
            return self._combined_batch_size
        return None

    def _partition(self, dataset: Any, shuffle: bool, drop_last: bool) -> _SubDataset:
        if shuffle and not self._options.exists("random_seed"):
            raise AssertionError(
                "When using auto_distributed_partitioning you must set poptorch.Options.randomSeed() "
                "to ensure that tensors are in the same order in all processes."
            )
        if self._combined_batch_size is None:
            raise AssertionError("batch_size=None not allowed when using auto_distributed_partitioning.")
        return _SubDataset(dataset, self._options, self._combined_batch_size, drop_last)

    def _warn_of_short_batch(self, dataset: Any, batch_sampler: Any, processes: int) -> None:
        if batch_sampler is not None:
            batches, combined = _length_or_none(batch_sampler), self._num_batches_to_combine
            left = None if batches is None or combined is None else batches % combined
        elif self._combined_batch_size is not None:
            left = len(dataset) % (self._combined_batch_size * processes)
        else:
            left = 0
        if left != 0:
            logger.warning(
                "drop_last=False and the data does not divide into combined batches of %s: the last batch is short, "
                "and a compiled model refuses it. drop_last=True leaves it out",
                self._combined_batch_size,
            )

    def __len__(self) -> int:
        if self._accessor is not None and self._accessor.rebatched_size:
            full, rest = divmod(len(self.dataset), self._accessor.rebatched_size)  # type: ignore[arg-type]
            return full + (1 if rest and not self.rebatched_drop_last else 0)
        return super().__len__()

    @property
    def combinedBatchSize(self) -> Optional[int]:
        """Rows of one batch; None where batch_size is None."""
        return self._combined_batch_size

    @property
    def options(self) -> Options:
        """The options that the loader was made with."""
        return self._options

    def terminate(self) -> None:
        """End the loading process, if there is one."""
        if self._accessor is not None:
            self._accessor.terminate()

    def __del__(self) -> None:
        if "_accessor" in self.__dict__:
            self.terminate()

    def __iter__(self) -> Any:
        if self._accessor is not None:  # the loading process's copy of this loader begins its own epochs
            return iter(self._accessor)
        if self._shuffles_globally:
            self.dataset.shuffle_global_indices()  # type: ignore[attr-defined]
            self.dataset.swap_range()  # type: ignore[attr-defined]
        if self._is_user_batch_sampler_set and self._num_batches_to_combine not in (None, 1):
            count = int(self._num_batches_to_combine or 1)
            return combined_batch_generator(super().__iter__(), count, self.rebatched_drop_last)
        return super().__iter__()


def _batches_per_call(options: Options) -> int:
    groups = options.replication_factor // options.input_group_size
    return int(options.device_iterations * groups * options.Training.gradient_accumulation)


def _worker_rows(rows: Optional[int], asked: Optional[int], rebatched_size: int) -> Optional[int]:
    if asked is None:
        return rows
    if asked > rebatched_size:
        raise AssertionError(
            f"The rebatched_worker_size ({asked}) must be <= to the combined batch size ({rebatched_size})"
        )
    return asked


def _length_or_none(batch_sampler: Any) -> Optional[int]:
    try:
        return len(batch_sampler)
    except (TypeError, NotImplementedError):
        return None
