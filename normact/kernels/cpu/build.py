"""Building the C++ kernels at first use: under a minute, once for this source, torch, compiler and processor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import torch

from normact.kernels.cpu.native_library import NativeLibrary, instruction_flags

SOURCE_FOLDER = Path(__file__).parent / "csrc"
LIBRARY_NAME = "normact_kernels.so"
# Vector extensions contract a * b + c by themselves under GCC's defaults, not under Clang's; nothing else is relaxed:
# comparison with NaN and the order of sums are as written.
OPTIMIZATION_FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")


def build_library(flags: Optional[Sequence[str]] = None) -> Path:
    """Return path of the compiled library, built first if it is not there.

    Args:
        flags: optimization flags of the compiler; None for `optimization_flags()`.

    Raises:
        BuildError: it cannot be built here; the message says why.
    """
    return kernels().build(optimization_flags() if flags is None else flags)


def optimization_flags() -> List[str]:
    """OPTIMIZATION_FLAGS and those for the instructions that $PROXYNORM_KERNEL_ISA names.

    Raises:
        BuildError: it names none that is known.
    """
    return [*OPTIMIZATION_FLAGS, *instruction_flags()]


def kernels() -> NativeLibrary:
    """Return the kernels for the torch of this process."""
    libraries = os.path.join(os.path.dirname(torch.__file__), "lib")
    return NativeLibrary(
        name=LIBRARY_NAME,
        folder=SOURCE_FOLDER,
        title="its CPU kernels",
        duration="about a minute",
        cache_prefix=f"torch{torch.__version__}",
        compile_flags=(f"-std={language_standard()}", "-fopenmp", *include_flags()),
        link_flags=(f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lc10", "-ltorch_cpu", "-ltorch"),
        built_for=(torch.__version__,),
    )


def torch_version() -> Tuple[int, ...]:
    """(major, minor) of torch."""
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2] if part.isdigit())


def language_standard() -> str:
    """Return the C++ that torch's headers are written in."""
    return "c++20" if torch_version() >= (2, 10) else "c++17"


def include_flags() -> List[str]:
    """Return the compiler's flags for torch's headers."""
    include = os.path.join(os.path.dirname(torch.__file__), "include")
    abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
    return ["-isystem", include, "-isystem", os.path.join(include, "torch", "csrc", "api", "include"),
            f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]  # fmt: skip
