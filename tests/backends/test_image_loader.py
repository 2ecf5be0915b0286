"""Loading processes hand batches over wherever shared memory or open files are scarce."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List

import pytest
import torch

from backends import image_loader
from backends.image_loader import build_loader

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = """
import logging, sys, torch
sys.path.insert(0, "tests/backends")
from test_image_loader import Numbered, batches_of, sums
from backends.image_loader import build_loader

logging.basicConfig(format="%(message)s")
for epoch in range(2):
    loader = build_loader(Numbered(), batches_of(10), workers=2)
    assert sums(loader) == sums(build_loader(Numbered(), batches_of(10), workers=0))
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


def test_batches_pass_through_a_shared_memory_that_holds_less_than_one_of_them():
    if not may_mount():
        pytest.skip("a small /dev/shm takes root and unshare")
    mount = 'mount -t tmpfs -o size=256k tmpfs /dev/shm && exec "$@"'
    ended = run("unshare", "-m", "sh", "-c", mount, "sh")
    assert ended.stdout == "all batches arrived twice\n", ended.stderr
    assert ended.stderr.count("batches go through pipes, which is slower; enlarge /dev/shm") == 1
    assert "/dev/shm is full" in ended.stderr


def test_batches_pass_where_few_files_may_be_open():
    ended = run("sh", "-c", 'ulimit -n 64 && exec "$@"', "sh")
    assert ended.stdout == "all batches arrived twice\n", ended.stderr
    assert ended.stderr.count("64 files may be open (ulimit -n)") == 1


def test_a_soft_limit_of_open_files_is_raised_and_memory_shared():
    ended = run("sh", "-c", 'ulimit -S -n 64 && exec "$@"', "sh")
    assert (ended.stdout, ended.stderr) == ("all batches arrived twice\n", "")


@pytest.mark.parametrize("collate", ["_collate", "_collate_for_pipes"])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_writable_tensors_of_the_same_values_whichever_way(monkeypatch, collate, workers):
    monkeypatch.setattr(image_loader, "_may_open_files", lambda: collate == "_collate")
    loader = build_loader(Numbered(), batches_of(4), workers)
    for (images, labels), numbers in zip(loader, batches_of(4)):
        assert labels.tolist() == numbers and labels.dtype == torch.int64
        assert images.dtype == torch.uint8 and images[:, 0, 0, 0].tolist() == numbers
        images.add_(1)
