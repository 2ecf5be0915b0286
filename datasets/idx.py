"""Read and write the idx files of the MNIST family: a magic number, big-endian 32-bit dimensions, then bytes.

Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", section "File formats".
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Tuple

import numpy as np

from configs.bounded_file import KIB, read_bounded
from datasets.errors import DataError

UNSIGNED_BYTES = 0x08


def read_idx(path: Path, shape: Tuple[int, ...]) -> np.ndarray:
    """Return the uint8 array of `shape` that the idx file holds; a name that ends in .gz is unpacked.

    Raises:
        DataError: unreadable, not an idx file of bytes, another shape, or too few or too many bytes.
    """
    try:
        most = len(header_of(shape)) + int(np.prod(shape))
        # No file is larger than what it holds, but for the few bytes that gzip adds where it saves none.
        packed = read_bounded(path, most + most // 1000 + KIB)
        content = unpacked(packed, most) if path.suffix == ".gz" else packed
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path} is damaged or cannot be read ({reason}); remove it and supply it again") from error
    return parse_idx(content, path, shape)


def unpacked(packed: bytes, most: int) -> bytes:
    """Return what gzip packed, and no more than one byte beyond `most`: a small file may unpack to any size.

    Raises:
        OSError, EOFError, zlib.error: damaged or cut short.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        return file.read(most + 1)


def header_of(shape: Tuple[int, ...]) -> bytes:
    """Return two zero bytes, the element type, the number of dimensions and the dimensions."""
    return bytes([0, 0, UNSIGNED_BYTES, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write a uint8 array."""
    with open(path, "wb") as file:
        file.write(header_of(array.shape))
        file.write(np.ascontiguousarray(array, dtype=np.uint8).data)


def parse_idx(content: bytes, path: Path, shape: Tuple[int, ...]) -> np.ndarray:
    """Return the uint8 array of `shape` in the content of the file `path`, as a view of it.

    Raises:
        DataError: not an idx file of bytes, another shape, or too few or too many bytes.
    """
    expected = header_of(shape)
    header = content[: len(expected)]
    if header != expected:
        raise DataError(
            f"{path} is damaged or a different file: it starts with {header.hex() or 'nothing'}, expected "
            f"{expected.hex()} (magic number and shape {shape}); remove it and supply it again"
        )
    size = int(np.prod(shape))
    if len(content) - len(expected) != size:
        raise DataError(
            f"{path} is damaged: {len(content) - len(expected)} bytes follow its header, expected {size}; remove it "
            "and supply it again"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=len(expected)).reshape(shape)
