"""Building the C++ kernels at first use, and keeping the library in a cache folder.

The compiler is called directly: one command for each source, side by side, then a link. This needs g++ or
clang++ and nothing else (torch.utils.cpp_extension would need ninja too), and takes under a minute.

$PROXYNORM_KERNEL_ISA chooses the instructions: "native" (the default, all that this processor has), "avx2" (what
x86 processors since 2013 share) or "baseline" (the compiler's default: SSE2, NEON). It is for tests, and for telling a
fault of one form from a fault of all.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import List, Optional, Sequence

import torch

from normact.kernels.cpu.compiler import BuildError, StopRequests, run_all
from normact.kernels.cpu.library_cache import keep_library, locked, private_folder, scratch_folder, trusted_library

logger = logging.getLogger(__name__)

SOURCE_FOLDER = Path(__file__).parent / "csrc"
CACHE_VARIABLE = "PROXYNORM_CACHE_DIR"
LIBRARY_NAME = "normact_kernels.so"
ISA_VARIABLE = "PROXYNORM_KERNEL_ISA"
ISA_FLAGS = {"native": ("-march=native",), "avx2": ("-march=haswell",), "baseline": ()}
# Vector extensions contract a * b + c by themselves under GCC's defaults, not under Clang's; nothing else is relaxed:
# comparison with NaN and the order of sums are as written.
OPTIMIZATION_FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")


def build_library(flags: Optional[Sequence[str]] = None) -> Path:
    """Path of the compiled library, built first if this source, torch, compiler and processor have none yet.

    Several processes may call this at once: one builds, the others wait for it.

    Args:
        flags: optimization flags of the compiler; None for `optimization_flags()`.

    Raises:
        BuildError: not Linux or macOS, no compiler, a failing one, no cache folder that this user alone can write to,
            an unknown instruction set, or a signal came.
    """
    if importlib.util.find_spec("fcntl") is None:  # no file locks, no users, no process groups: Windows
        raise BuildError("they are built on Linux and macOS alone")
    compiler = find_compiler()
    flags = optimization_flags() if flags is None else flags
    folder = cache_folder() / _key(compiler, flags)
    library, stop = folder / LIBRARY_NAME, StopRequests()
    try:
        private_folder(folder)
        if trusted_library(library):
            return library
        with stop.watching(), locked(folder, stop.check):
            if not trusted_library(library):
                _compile(compiler, flags, folder, library, stop)
    except OSError as error:
        raise BuildError(
            f"the cache folder {folder} cannot be used ({error}); set {CACHE_VARIABLE} to a folder of your own"
        ) from error
    return library


def optimization_flags() -> List[str]:
    """The compiler's flags for the instructions that $PROXYNORM_KERNEL_ISA names.

    Raises:
        BuildError: it names none that is known.
    """
    name = os.environ.get(ISA_VARIABLE) or "native"
    if name not in ISA_FLAGS:
        raise BuildError(f"{ISA_VARIABLE} is {name!r}; use {', '.join(ISA_FLAGS)} or leave it unset")
    return [*OPTIMIZATION_FLAGS, *ISA_FLAGS[name]]


def cache_folder() -> Path:
    """$PROXYNORM_CACHE_DIR, else normact/ in the user's cache folder.

    A relative $XDG_CACHE_HOME is ignored, as its specification says: code would be loaded from the current folder.

    Raises:
        BuildError: $PROXYNORM_CACHE_DIR is relative.
    """
    own = os.environ.get(CACHE_VARIABLE)
    if own:
        if not Path(own).expanduser().is_absolute():
            raise BuildError(f"{CACHE_VARIABLE} is {own!r}, a relative path; use an absolute one")
        return Path(own).expanduser()
    user = Path(os.environ.get("XDG_CACHE_HOME") or "")
    return (user if user.is_absolute() else Path.home() / ".cache") / "normact"


def find_compiler() -> str:
    """The C++ compiler: $CXX, else the first of g++, clang++, c++.

    Raises:
        BuildError: none is there.
    """
    for name in [os.environ.get("CXX"), "g++", "clang++", "c++"]:
        path = shutil.which(name) if name else None
        if path is not None:
            return path
    raise BuildError("no C++ compiler (g++ or clang++) was found")


def source_files() -> List[Path]:
    """The C++ sources and headers, sorted."""
    return sorted(path for path in SOURCE_FOLDER.iterdir() if path.suffix in (".cpp", ".h"))


def _key(compiler: str, flags: Sequence[str]) -> str:
    """Name of the cache folder: everything that changes the machine code."""
    parts = [torch.__version__, compiler, *flags, platform.machine(), _processor_flags()]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        parts.append(
            subprocess.run(
                [compiler, "-dumpfullversion"], capture_output=True, text=True, timeout=30, check=False
            ).stdout
        )
    for path in source_files():
        parts.append(path.name)
        parts.append(path.read_text())
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    return f"torch{torch.__version__}-{digest}"


def _processor_flags() -> str:
    """The instruction sets of this processor, so that machines sharing a home folder do not share a library."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line.partition(":")[2]
    return platform.processor()


def _compile(compiler: str, flags: Sequence[str], folder: Path, library: Path, stop: StopRequests) -> None:
    """Compile every source side by side, link, and move the result into place in one step."""
    start = time.monotonic()
    # Not only a log, which nobody sees by default: the first forward would be a silent minute.
    print(f"normact: building its CPU kernels with {compiler} (once, about a minute) ...", file=sys.stderr, flush=True)
    logger.info("building the fused kernels with %s in %s", compiler, folder)
    common = ["-std=" + _language_standard(), "-fPIC", "-fopenmp", "-w", *flags, *_torch_flags()]
    with scratch_folder(folder) as scratch:
        sources = [path for path in source_files() if path.suffix == ".cpp"]
        objects = [scratch / f"{path.stem}.o" for path in sources]
        run_all([[compiler, *common, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects)], stop)
        linked = scratch / LIBRARY_NAME
        libraries = os.path.join(os.path.dirname(torch.__file__), "lib")
        link = [compiler, "-shared", "-fopenmp", *map(str, objects), "-o", str(linked), f"-L{libraries}"]
        run_all([[*link, f"-Wl,-rpath,{libraries}", "-lc10", "-ltorch_cpu", "-ltorch"]], stop)
        keep_library(linked, library)
    logger.info("built the fused kernels in %.0f s", time.monotonic() - start)


def _language_standard() -> str:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2] if part.isdigit())
    return "c++20" if version >= (2, 10) else "c++17"


def _torch_flags() -> List[str]:
    include = os.path.join(os.path.dirname(torch.__file__), "include")
    abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
    return ["-isystem", include, "-isystem", os.path.join(include, "torch", "csrc", "api", "include"),
            f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]  # fmt: skip
