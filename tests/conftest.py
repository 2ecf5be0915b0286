"""What every test shares."""

import contextlib
import ctypes
import gc
import os
from typing import Iterator

# Before torch starts its threads: results to the bit, and two test processes beside each other, need one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    # Read when triton is first imported, which torchvision may do: its kernels then run on a CPU, interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from fault_table import (  # noqa: F401  (hooks: the tests of the table are marked, and reported in it)
    pytest_collection_modifyitems,
    pytest_runtest_logreport,
    pytest_terminal_summary,
)

import datasets.images.torchvision_import  # noqa: F401  (tests that use torchvision's networks need its operators)
from normact import kernels

torch.set_num_threads(1)
settings.register_profile("project", derandomize=True, deadline=None, max_examples=30)
settings.load_profile("project")


@pytest.fixture(scope="session")
def built_kernels() -> None:
    """Skips where the layer's CPU kernels cannot be built."""
    reason = kernels.why_not_fused(torch.zeros(1, 1, 1, 1), 1, "contiguous", "relu")
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="module", autouse=True)
def freed_memory_goes_back() -> Iterator[None]:
    """glibc keeps what is freed below its heap's top: gigabytes a process, after a thousand tests."""
    yield
    gc.collect()
    with contextlib.suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
