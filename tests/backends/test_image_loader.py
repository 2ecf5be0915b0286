"""Loading processes hand batches over in slots that are used again, and wherever memory or open files are scarce."""

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Dict, List, Tuple

import pytest
import torch

from backends.image_loader import build_loader

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = """
import logging, sys, torch
sys.path.insert(0, "tests/backends")
from test_image_loader import Numbered, batches_of, sums
from backends.image_loader import build_loader

logging.basicConfig(format="%(message)s")
for epoch in range(2):
    loader = build_loader(Numbered(), batches_of(2), workers=2)
    assert sums(loader) == sums(build_loader(Numbered(), batches_of(2), workers=0))
print("all batches arrived twice")
"""


class Numbered(torch.utils.data.Dataset):
    """Images of 30 kB that hold their number."""

    must_copy = False

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> "tuple[torch.Tensor, int]":
        return torch.full((3, 100, 100), index, dtype=torch.uint8), index


def batches_of(size: int) -> List[List[int]]:
    return [list(range(first, first + size)) for first in range(0, 40, size)]


def sums(loader: object) -> List[object]:
    return [(images.double().sum().item(), images.shape, labels.tolist()) for images, labels in loader]  # type: ignore


def run(*prefix: str) -> "subprocess.CompletedProcess[str]":
    command = [*prefix, sys.executable, "-c", PROGRAM]
    return subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=600)


def may_mount() -> bool:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    mount = "mount -t tmpfs -o size=1m tmpfs /dev/shm"
    return subprocess.run(["unshare", "-m", "sh", "-c", mount], check=False, capture_output=True).returncode == 0


def test_batches_do_not_need_the_shared_memory_of_a_container():
    if not may_mount():
        pytest.skip("a small /dev/shm takes root and unshare")
    mount = 'mount -t tmpfs -o size=256k tmpfs /dev/shm && exec "$@"'
    ended = run("unshare", "-m", "sh", "-c", mount, "sh")
    assert (ended.stdout, ended.stderr) == ("all batches arrived twice\n", "")


def test_batches_pass_where_few_files_may_be_open():
    ended = run("sh", "-c", 'ulimit -n 64 && exec "$@"', "sh")
    assert (ended.stdout, ended.stderr) == ("all batches arrived twice\n", "")


def test_batches_go_through_pipes_where_memory_cannot_be_shared():
    ended = run("sh", "-c", 'ulimit -f 1 && exec "$@"', "sh")  # a file in memory is a file
    assert ended.stdout == "all batches arrived twice\n", ended.stderr
    assert ended.stderr == (
        "loading processes cannot share memory ([Errno 27] File too large): batches go through pipes, which is slower\n"
    )


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_writable_tensors_of_the_same_values_whichever_way_they_come(workers):
    for _ in range(2):  # the first ones of a loader go through pipes, others do not
        loader = build_loader(Numbered(), batches_of(4), workers)
        assert len(loader) == 10
        for (images, labels), numbers in zip(loader, batches_of(4)):
            assert labels.tolist() == numbers and labels.dtype == torch.int64
            assert images.dtype == torch.uint8 and images[:, 0, 0, 0].tolist() == numbers
            assert images.shape == (4, 3, 100, 100) and images.is_contiguous()
            images.add_(1)
            labels.add_(1)


def is_in_a_slot(tensor: torch.Tensor) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        first, last = (int(place, 16) for place in line.split()[0].split("-"))
        if first <= tensor.data_ptr() < last:
            return "/memfd:batches" in line
    raise AssertionError("the tensor is nowhere")


@pytest.mark.parametrize("workers", [1, 2])
def test_all_batches_but_the_first_come_in_slots_as_long_as_they_are_let_go(workers):
    places = [is_in_a_slot(images) for images, _ in build_loader(Numbered(), batches_of(2), workers)]
    ahead = 2 * workers  # asked for before the first has arrived, whose size is that of the slots
    assert places == [False] * ahead + [True] * (20 - ahead)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_is_kept_from_others_as_long_as_anything_of_it_is_held(workers, seed):
    random = Random(seed)
    held: Dict[int, torch.Tensor] = {}
    for number, (images, _) in enumerate(build_loader(Numbered(), batches_of(1) * 3, workers)):
        # the batch, a part of it, or an array over its memory
        held[number] = random.choice([images, images[:, 1:], torch.from_numpy(images.numpy()[:, :, 5])])
        for kept, tensor in held.items():
            assert (tensor == kept % 40).all(), (kept, number)
        for kept in random.sample(sorted(held), random.randrange(min(len(held), 8))):
            del held[kept]


def test_batches_that_are_all_held_are_right():
    batches = list(build_loader(Numbered(), batches_of(1), workers=2))
    assert [images[0, 0, 0, 0].item() for images, _ in batches] == list(range(40))


def test_batches_that_are_larger_than_the_first_arrive():
    lists = [list(range(first, first + size)) for first, size in ((0, 1), (1, 2), (3, 30), (33, 1), (34, 3), (37, 3))]
    for images, labels in build_loader(Numbered(), lists * 2, workers=1):
        assert images[:, 2, 99, 99].tolist() == labels.tolist()


def test_a_loader_that_was_left_before_its_end_starts_anew_with_all_its_slots():
    loader = build_loader(Numbered(), batches_of(2), workers=1)
    for _ in range(3):
        for _batch, _number in zip(loader, range(4)):  # others are under way then
            pass
    places = [is_in_a_slot(images) for images, _ in loader]
    assert places == [False] * 2 + [True] * 18


def open_files_and_slots() -> Tuple[int, int]:
    return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("/memfd:batches")


def test_slots_go_with_their_loader_and_its_last_batch():
    sums(build_loader(Numbered(), batches_of(2), workers=1))  # what opens once stays
    gc.collect()
    before = open_files_and_slots()
    loader = build_loader(Numbered(), batches_of(2), workers=1)
    for images, _ in loader:
        kept = images
    del loader, images
    gc.collect()
    assert kept[1, 0, 0, 0] == 39 and open_files_and_slots() == (before[0] + 1, before[1] + 1)  # a mapping has its own
    del kept
    gc.collect()
    assert open_files_and_slots() == before
