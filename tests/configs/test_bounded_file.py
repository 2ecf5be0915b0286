"""Files of bounded size."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from configs.bounded_file import GIB, MIB, read_bounded


def test_a_small_file_takes_little_memory_whatever_the_bound_is(tmp_path: Path) -> None:
    path = tmp_path / "small"
    path.write_bytes(b"content")
    tracemalloc.start()
    try:
        assert read_bounded(path, 8 * GIB) == b"content"
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < MIB  # 7 bytes and the buffer of a file; where memory is limited (ulimit -v), 8 GiB are an error
