"""Which outputs the CPU kernels write past the caches, decided by the processor; the values are the same to the bit.

An output that is larger than what the caches keep until it is read costs, with ordinary stores, a reading of every line
that it replaces. Streaming stores save it. Which is faster differs between processors (benchmarks/NOTES.md), so

    PROXYNORM_STREAMING_STORES=auto     the default: as 8, on processors with bfloat16 instructions (AVX512-BF16)
    PROXYNORM_STREAMING_STORES=off      never
    PROXYNORM_STREAMING_STORES=8        outputs of 8 MiB or more, where a row is whole cache lines

`python -m benchmarks.streaming` measures both ways on this machine and prints the setting that suits it.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

from normact.kernels.cpu.compiler import BuildError
from normact.kernels.cpu.native_library import processor_flags

STREAMING_VARIABLE = "PROXYNORM_STREAMING_STORES"
MIB = 1 << 20
NEVER = 2**63 - 1
LARGE = 8 * MIB


def streamed_bytes() -> int:
    """Return the bytes from which on an output is streamed, by $PROXYNORM_STREAMING_STORES and the processor.

    Raises:
        BuildError: it says nothing that is known.
    """
    setting = os.environ.get(STREAMING_VARIABLE) or "auto"
    if setting == "auto":
        return LARGE if "avx512_bf16" in processor_flags().split() else NEVER
    if setting == "off":
        return NEVER
    if not re.fullmatch(r"[0-9]{1,6}", setting):
        raise BuildError(f"{STREAMING_VARIABLE} is {setting!r}; use auto, off, or a size in MiB, as 8")
    return int(setting) * MIB


def stream_from(library: Path, size: int) -> None:
    """Have the kernels of a loaded library stream outputs of `size` bytes or more."""
    function = ctypes.CDLL(str(library)).normact_stream_from
    function.argtypes, function.restype = [ctypes.c_int64], None
    function(size)
