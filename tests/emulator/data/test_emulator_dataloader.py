"""The data loader, and the accessor that loads in a process of its own."""

from typing import Any, List

import poptorch
import pytest
import torch


class Numbers(torch.utils.data.Dataset):
    """Element i is the number i, alone, with its double, or by name."""

    def __init__(self, length, form="tensor"):
        self.length = length
        self.form = form

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if index >= self.length:
            raise IndexError(index)
        value = torch.tensor([float(index)])
        return {"tensor": value, "pair": (value, 2 * value), "named": {"x": value, "y": 2 * value}}[self.form]


class Stream(torch.utils.data.IterableDataset):
    """The numbers up to `length`, split over loader processes."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return (torch.tensor([float(i)]) for i in range(first, self.length, step))


class Broken(Numbers):
    def __getitem__(self, index):
        raise ValueError("this element cannot be read")


def options(processes=None, seed=None, iterations=2):
    chosen = poptorch.Options().deviceIterations(iterations)
    if processes is not None:
        chosen.Distributed.configureProcessId(*processes)
    return chosen if seed is None else chosen.randomSeed(seed)


def seen(loader):
    return [batch.flatten().int().tolist() for batch in loader]


def test_batches_are_combined_and_a_short_rest_is_left_out():
    loader = poptorch.DataLoader(options(), Numbers(11), batch_size=2)
    assert len(loader) == 2
    assert seen(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_short_last_batch_is_warned_of_and_refused_by_the_model(capfd):
    loader = poptorch.DataLoader(options(), Numbers(6), batch_size=2, drop_last=False)
    assert "the last batch is short" in capfd.readouterr().err
    first, last = loader
    model = poptorch.inferenceModel(torch.nn.Identity(), options())
    model(first)
    with pytest.raises(poptorch.Error, match="Shape mismatch"):
        model(last)


def test_without_batch_size_elements_come_as_they_are():
    loader = poptorch.DataLoader(options(), Numbers(3), batch_size=None, drop_last=False)
    assert loader.combinedBatchSize is None
    assert seen(loader) == [[0], [1], [2]]


def test_each_process_gets_its_own_block_of_whole_batches():
    blocks = [seen(poptorch.DataLoader(options((p, 2)), Numbers(19), batch_size=2)) for p in range(2)]
    assert blocks == [[[0, 1, 2, 3], [4, 5, 6, 7]], [[8, 9, 10, 11], [12, 13, 14, 15]]]


@pytest.mark.parametrize("workers", [0, 1])
def test_shuffling_is_one_order_for_all_processes_and_another_each_epoch(workers):
    loaders = [
        poptorch.DataLoader(options((p, 2), seed=4), Numbers(19), batch_size=2, shuffle=True, num_workers=workers)
        for p in range(2)
    ]
    epochs = [[sorted(sum(seen(loader), [])) for loader in loaders] for _ in range(2)]
    for first, second in epochs:
        assert len(first) == len(second) == 8
        assert not set(first) & set(second)
    assert epochs[0] != epochs[1]


def test_what_is_left_over_changes_ends_between_epochs():
    order = torch.randperm(10, generator=torch.Generator().manual_seed(4)).tolist()
    loader = poptorch.DataLoader(options((0, 2), seed=4, iterations=1), Numbers(10), batch_size=4, shuffle=True)
    assert seen(loader) == [order[2:6]]
    (second,) = seen(loader)
    generator = torch.Generator().manual_seed(4)
    torch.randperm(10, generator=generator)
    assert second == torch.randperm(10, generator=generator).tolist()[0:4]


def test_shares_move_by_the_rest_of_one_share_and_back_again():
    for process, first in [(0, 0), (1, 8)]:
        loader = poptorch.DataLoader(options((process, 2)), Numbers(31), batch_size=4)
        share: Any = loader.dataset
        starts = []
        for _ in range(3):
            assert len(share) == 8
            starts.append(int(share[0]))
            share.swap_range()
        assert starts == [first, first + 7, first]  # 31 % 8


def test_a_data_set_without_a_combined_batch_for_each_process_is_refused():
    with pytest.raises(AssertionError, match=r"15 elements is too small for 2 processes .* 16 elements in all"):
        poptorch.DataLoader(options((0, 2)), Numbers(15), batch_size=4)
    shares = [poptorch.DataLoader(options((p, 2)), Numbers(15), batch_size=4, drop_last=False).dataset for p in (0, 1)]
    assert [len(share) for share in shares] == [8, 7]


def test_what_processes_cannot_share_is_refused():
    for arguments, error in [
        ({"dataset": Numbers(9), "shuffle": True}, AssertionError),
        ({"dataset": Stream(9)}, AssertionError),
        ({"dataset": Numbers(9), "batch_size": None, "drop_last": False}, AssertionError),
        ({"dataset": Numbers(9), "batch_sampler": [[0]]}, poptorch.Error),
    ]:
        with pytest.raises(error):
            poptorch.DataLoader(options((0, 2)), **arguments)


def test_the_batches_of_a_sampler_are_joined():
    batches = [[0, 1], [5, 6], [2, 3], [8, 9], [4, 7]]
    loader = poptorch.DataLoader(options(), Numbers(10), batch_sampler=batches)
    assert seen(loader) == [[0, 1, 5, 6], [2, 3, 8, 9]]
    loader = poptorch.DataLoader(options(), Numbers(10), batch_sampler=batches, drop_last=False)
    assert seen(loader)[-1] == [4, 7]
    with pytest.raises(poptorch.Error, match="mutually exclusive"):
        poptorch.DataLoader(options(), Numbers(10), batch_sampler=batches, batch_size=2)


Async, AsyncRebatched = poptorch.DataLoaderMode.Async, poptorch.DataLoaderMode.AsyncRebatched


def test_a_loading_process_gives_the_same_batches_epoch_after_epoch():
    loader = poptorch.DataLoader(options(), Numbers(11, "pair"), batch_size=2, mode=Async)
    try:
        for _ in range(2):
            got = [[part.flatten().int().tolist() for part in batch] for batch in loader]
            assert got == [[[0, 1, 2, 3], [0, 2, 4, 6]], [[4, 5, 6, 7], [8, 10, 12, 14]]]
    finally:
        loader.terminate()


def test_an_epoch_that_is_broken_off_begins_anew():
    loader = poptorch.DataLoader(options(), Numbers(40, "named"), batch_size=2, mode=Async)
    try:
        for batch in loader:
            assert batch["y"].flatten().tolist() == [0, 2, 4, 6]
            break
        assert [batch["x"][0].item() for batch in loader] == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]
    finally:
        loader.terminate()


@pytest.mark.parametrize("drop_last, batches", [(True, 2), (False, 3)])
def test_rebatching_loses_no_rest_of_a_worker(drop_last, batches):
    loader = poptorch.DataLoader(
        options(),
        Stream(11),
        batch_size=2,
        mode=AsyncRebatched,
        num_workers=0 if drop_last else 2,
        worker_init_fn=data_set_splits_itself,
        drop_last=drop_last,
        rebatched_worker_size=3,
    )
    try:
        rows = [batch.flatten().int().tolist() for batch in loader]
        assert [len(batch) for batch in rows] == [4, 4, 3][:batches]
        everything: List[Any] = sum(rows, [])
        assert len(set(everything)) == len(everything) == (8 if drop_last else 11)
    finally:
        loader.terminate()


def data_set_splits_itself(worker):
    """Tell the loader that the data set splits itself."""


def test_a_short_rest_is_rebatched_when_it_is_to_be_kept():
    loader = poptorch.DataLoader(options(), Numbers(6), batch_size=2, mode=Async, drop_last=False)
    try:
        assert len(loader) == 2
        assert seen(loader) == [[0, 1, 2, 3], [4, 5]]
    finally:
        loader.terminate()


def test_a_data_set_that_fails_is_an_error_here(capfd):
    with pytest.raises(poptorch.Error, match="worker thread failed to start"):
        poptorch.AsynchronousDataAccessor(Broken(3), sharing_strategy=poptorch.SharingStrategy.Fork)
    assert "this element cannot be read" in capfd.readouterr().err


def test_misuse_of_the_accessor_is_refused_before_a_process_starts():
    loader = poptorch.DataLoader(options(), Numbers(6), batch_size=2, drop_last=False)
    with pytest.raises(AssertionError, match="rebatched_size"):
        poptorch.AsynchronousDataAccessor(loader)
    with pytest.raises(AssertionError, match="greater than 1"):
        poptorch.AsynchronousDataAccessor(Numbers(6), rebatched_size=1)
    with pytest.raises(AssertionError, match="AsyncRebatched"):
        poptorch.DataLoader(options(), Numbers(6), mode=Async, async_options={"rebatched_size": 2})
    with pytest.raises(AssertionError, match="must be <= to the combined batch size"):
        poptorch.DataLoader(options(), Numbers(6), mode=AsyncRebatched, rebatched_worker_size=9)


def test_a_loading_process_shuffles_a_process_share_anew_each_epoch():
    loader = poptorch.DataLoader(options((0, 2), seed=4), Numbers(19), batch_size=2, shuffle=True, mode=Async)
    reference = poptorch.DataLoader(options((0, 2), seed=4), Numbers(19), batch_size=2, shuffle=True)
    try:
        for _ in range(3):
            assert seen(loader) == seen(reference)
    finally:
        loader.terminate()


def test_torchs_loader_is_the_next_class_after_poptorchs_wherever_others_join():
    class Padding(torch.utils.data.DataLoader):
        pass

    class Both(Padding, poptorch.DataLoader):
        pass

    assert Both.__mro__[:4] == (Both, Padding, poptorch.DataLoader, torch.utils.data.DataLoader)
