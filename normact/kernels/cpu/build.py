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
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Iterator, List, Optional, Sequence

import torch

logger = logging.getLogger(__name__)

SOURCE_FOLDER = Path(__file__).parent / "csrc"
CACHE_VARIABLE = "PROXYNORM_CACHE_DIR"
LIBRARY_NAME = "normact_kernels.so"
ISA_VARIABLE = "PROXYNORM_KERNEL_ISA"
ISA_FLAGS = {"native": ("-march=native",), "avx2": ("-march=haswell",), "baseline": ()}
# Vector extensions contract a * b + c by themselves under GCC's defaults, not under Clang's; nothing else is relaxed:
# comparison with NaN and the order of sums are as written.
OPTIMIZATION_FLAGS = ("-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
BUILD_TIMEOUT_SECONDS = 600.0


class BuildError(RuntimeError):
    """The library cannot be built on this machine; the message says why in one line."""


def build_library(flags: Optional[Sequence[str]] = None) -> Path:
    """Path of the compiled library, built first if this source, torch, compiler and processor have none yet.

    Several processes may call this at once: one builds, the others wait for it.

    Args:
        flags: optimization flags of the compiler; None for `optimization_flags()`.

    Raises:
        BuildError: no compiler, a failing one, no writable cache folder, or an unknown instruction set.
    """
    compiler = find_compiler()
    flags = optimization_flags() if flags is None else flags
    folder = cache_folder() / _key(compiler, flags)
    library = folder / LIBRARY_NAME
    if library.exists():
        return library
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            if not library.exists():
                _compile(compiler, flags, folder, library)
    except OSError as error:
        raise BuildError(
            f"the cache folder {folder} cannot be used ({error}); set {CACHE_VARIABLE} to a writable folder"
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
    """$PROXYNORM_CACHE_DIR, else normact/ in the user's cache folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "normact"


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


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file. The system drops it when its process dies, so no stale lock can stay."""
    import fcntl  # not there on Windows, which has no build either

    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(compiler: str, flags: Sequence[str], folder: Path, library: Path) -> None:
    """Compile every source side by side, link, and move the result into place in one step."""
    start = time.monotonic()
    logger.info("building the fused kernels with %s in %s (once; under a minute)", compiler, folder)
    common = ["-std=" + _language_standard(), "-fPIC", "-fopenmp", "-w", *flags, *_torch_flags()]
    with tempfile.TemporaryDirectory(dir=folder) as scratch_name:
        scratch = Path(scratch_name)
        sources = [path for path in source_files() if path.suffix == ".cpp"]
        objects = [scratch / f"{path.stem}.o" for path in sources]
        _run_all([[compiler, *common, "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects)])
        linked = scratch / LIBRARY_NAME
        libraries = os.path.join(os.path.dirname(torch.__file__), "lib")
        link = [compiler, "-shared", "-fopenmp", *map(str, objects), "-o", str(linked), f"-L{libraries}"]
        _run_all([[*link, f"-Wl,-rpath,{libraries}", "-lc10", "-ltorch_cpu", "-ltorch"]])
        os.replace(linked, library)
    logger.info("built the fused kernels in %.0f s", time.monotonic() - start)


def _language_standard() -> str:
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2] if part.isdigit())
    return "c++20" if version >= (2, 10) else "c++17"


def _torch_flags() -> List[str]:
    include = os.path.join(os.path.dirname(torch.__file__), "include")
    abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
    return ["-isystem", include, "-isystem", os.path.join(include, "torch", "csrc", "api", "include"),
            f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]  # fmt: skip


def _run_all(commands: Sequence[Sequence[str]]) -> None:
    """Run commands side by side.

    Raises:
        BuildError: with the first line of the first error.
    """
    processes: List[subprocess.Popen[str]] = []
    try:
        for command in commands:
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        for process in processes:
            _, errors = process.communicate(timeout=BUILD_TIMEOUT_SECONDS)
            if process.returncode != 0:
                raise BuildError(f"the compiler failed: {_first_error(errors)}")
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"the compiler did not finish in {BUILD_TIMEOUT_SECONDS:.0f} s") from error
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def _first_error(text: str) -> Optional[str]:
    lines = text.strip().splitlines()
    return next((line for line in lines if "error" in line), lines[0] if lines else "no message")


if sys.platform == "win32":
    raise ImportError("the fused kernels are built on Linux and macOS alone")
