"""C++ sources that become a library at first use, kept in a cache folder.

The compiler is called directly: one command for each source, side by side, then a link. This needs g++ or
clang++ and nothing else (torch.utils.cpp_extension would need ninja too).

$PROXYNORM_KERNEL_ISA chooses the instructions: "native" (the default, all that this processor has), "avx512" (servers
since 2017), "avx2" (what x86 processors since 2013 share) or "baseline" (the compiler's default: SSE2, NEON). It is for
tests, and for telling a fault of one form from a fault of all.
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
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

from normact.kernels.cpu.compiler import BuildError, StopRequests, run_all
from normact.kernels.cpu.library_cache import keep_library, locked, private_folder, scratch_folder, trusted_library

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "PROXYNORM_CACHE_DIR"
ISA_VARIABLE = "PROXYNORM_KERNEL_ISA"
ISA_FLAGS = {
    "native": ("-march=native",),
    "avx512": ("-march=skylake-avx512",),
    "avx2": ("-march=haswell",),
    "baseline": (),
}


@dataclass(frozen=True)
class NativeLibrary:
    """What a library is made of.

    Attributes:
        name: of its file.
        folder: its sources, *.cpp and *.h.
        title: what is being built, for the line that says so.
        duration: how long it takes, for the same.
        cache_prefix: how the names of its cache folders begin.
        compile_flags: beside those of the instruction set.
        link_flags: beside the objects.
        built_for: what else changes the machine code: versions and headers.
    """

    name: str
    folder: Path
    title: str
    duration: str
    cache_prefix: str
    compile_flags: Tuple[str, ...]
    link_flags: Tuple[str, ...] = ()
    built_for: Tuple[str, ...] = ()

    def build(self, flags: Optional[Sequence[str]] = None) -> Path:
        """Return path of the compiled library, built first if these sources, compiler and processor have none yet.

        Several processes may call this at once: one builds, the others wait for it.

        Args:
            flags: of the instruction set; None for those of `instruction_flags()`.

        Raises:
            BuildError: not Linux or macOS, no compiler, a failing one, no cache folder that this user alone can write
                to, an unknown instruction set, or a signal came.
        """
        if importlib.util.find_spec("fcntl") is None:  # no file locks, no users, no process groups: Windows
            raise BuildError("they are built only on Linux and macOS")
        compiler = find_compiler()
        all_flags = [*self.compile_flags, *(instruction_flags() if flags is None else flags)]
        folder = cache_folder() / self._key(compiler, all_flags)
        library, stop = folder / self.name, StopRequests()
        try:
            private_folder(folder)
            if trusted_library(library):
                return library
            with stop.watching(), locked(folder, stop.check):
                if not trusted_library(library):
                    self._compile([compiler, *all_flags], folder, library, stop)
        except OSError as error:
            raise BuildError(
                f"the cache folder {folder} cannot be used ({error}); set {CACHE_VARIABLE} to a folder of your own"
            ) from error
        return library

    def source_files(self) -> List[Path]:
        """Return the C++ sources and headers, sorted."""
        return sorted(path for path in self.folder.iterdir() if path.suffix in (".cpp", ".h"))

    def _key(self, compiler: str, flags: Sequence[str]) -> str:
        """Name of the cache folder: everything that changes the machine code."""
        parts = [self.name, *self.built_for, compiler, *flags, *self.link_flags]
        # Machines that share a home folder do not share a library.
        parts += [platform.machine(), processor_flags()]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            parts.append(
                subprocess.run(
                    [compiler, "-dumpfullversion"], capture_output=True, text=True, timeout=30, check=False
                ).stdout
            )
        for path in self.source_files():
            parts.append(path.name)
            parts.append(path.read_text())
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        return f"{self.cache_prefix}-{digest}"

    def _compile(self, command: Sequence[str], folder: Path, library: Path, stop: StopRequests) -> None:
        """Compile every source side by side, link, and move the result into place in one step."""
        start, compiler = time.monotonic(), command[0]
        # Not only a log, which nobody sees by default: the first forward would be a silent minute.
        said = f"normact: building {self.title} with {compiler} (once, {self.duration}) ..."
        print(said, file=sys.stderr, flush=True)
        logger.info("building %s with %s in %s", self.name, compiler, folder)
        with scratch_folder(folder) as scratch:
            sources = [path for path in self.source_files() if path.suffix == ".cpp"]
            objects = [scratch / f"{path.stem}.o" for path in sources]
            run_all([[*command, "-fPIC", "-w", "-c", str(s), "-o", str(o)] for s, o in zip(sources, objects)], stop)
            linked = scratch / self.name
            # the flags again: OpenMP and sanitizers link what they need
            run_all([[*command, "-shared", *map(str, objects), "-o", str(linked), *self.link_flags]], stop)
            keep_library(linked, library)
        logger.info("built %s in %.0f s", self.name, time.monotonic() - start)


def instruction_flags() -> List[str]:
    """Return the compiler's flags for the instructions that $PROXYNORM_KERNEL_ISA names.

    Raises:
        BuildError: it names none that is known.
    """
    name = os.environ.get(ISA_VARIABLE) or "native"
    if name not in ISA_FLAGS:
        raise BuildError(f"{ISA_VARIABLE} is {name!r}; use {', '.join(ISA_FLAGS)} or leave it unset")
    return [*ISA_FLAGS[name]]


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
    """Return the C++ compiler: $CXX, else the first of g++, clang++, c++.

    Raises:
        BuildError: none is there.
    """
    for name in [os.environ.get("CXX"), "g++", "clang++", "c++"]:
        path = shutil.which(name) if name else None
        if path is not None:
            return path
    raise BuildError("no C++ compiler (g++ or clang++) was found")


def processor_flags() -> str:
    """Return the instruction sets of this processor, as Linux names them, with spaces between."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line.partition(":")[2]
    return platform.processor()
