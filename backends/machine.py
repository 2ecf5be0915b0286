"""What this machine's processor can do, in words that name no host."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import FrozenSet

from configs.counted import counted

CPU_INFORMATION = Path("/proc/cpuinfo")
_BFLOAT16 = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16")  # the last: Arm's


@functools.lru_cache(maxsize=None)
def cpu_flags() -> FrozenSet[str]:
    """Return the instruction sets that the kernel names; empty where it names none (not Linux)."""
    try:
        lines = CPU_INFORMATION.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(
        flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split(":")[1].split()
    )


def has_bfloat16_instructions() -> bool:
    """Whether the processor multiplies bfloat16 numbers itself.

    Asked of the processor: oneDNN's own check says yes wherever it can emulate them, which is slower than float32.
    """
    return bool(cpu_flags().intersection(_BFLOAT16))


def machine_class() -> str:
    """Cores and vector instructions, which is what the speed of a step depends on."""
    flags = cpu_flags()
    vectors = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"
    bfloat16 = "bfloat16 instructions" if has_bfloat16_instructions() else "no bfloat16 instructions"
    return f"{counted(os.cpu_count() or 1, 'core')}, {vectors}, {bfloat16}"
