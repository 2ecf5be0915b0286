"""Files of bounded size."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from configs.atomic_file import open_without_following, replace_file
from configs.bounded_file import GIB, MIB, open_regular, parse_json, read_bounded


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


def test_a_pipe_or_a_device_is_opened_neither_to_read_nor_to_write(tmp_path: Path) -> None:
    """Nobody is at its other end: what waits for that waits for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for path in (tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(OSError, match="it is not a regular file"):
            open_regular(path)
        with pytest.raises(OSError, match="it is not a regular file"):
            replace_file(path, b"content")
    for flags in (os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_CREAT):
        with pytest.raises(OSError, match="it is not a regular file"):
            open_without_following(tmp_path / "pipe", flags)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"] and (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("text", ["[" * 101 + "]" * 101, "[" * 100_000, '{"a":' * 500 + "1" + "}" * 500])
def test_json_that_is_nested_deeply_is_an_error_of_the_text(text: str) -> None:
    with pytest.raises(ValueError, match="it is nested more than 100 deep"):
        parse_json(text)


def test_json_of_a_hundred_levels_is_read() -> None:
    assert parse_json(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    assert parse_json("[" * 100 + "]" * 100) is not None
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match="two of its entries are called 'a'"):
        parse_json('{"a": 1, "a": 2}', must_differ=True)
