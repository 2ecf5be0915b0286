"""The kernels that a wheel brings, built ahead, so that the first fused step needs no compiler and no minute.

They speak to torch by its stable C interface, so one library serves every torch from OLDEST_TORCH on; there is one for
each instruction set, and the processor decides at run time. Where none fits, build.py builds. A source tree has none.
"""

from __future__ import annotations

import logging
import os
import platform
import shutil
from pathlib import Path
from typing import Dict, FrozenSet, List, Optional

import torch

from normact.kernels.cpu.build import OPTIMIZATION_FLAGS, SOURCE_FOLDER, include_flags, language_standard, torch_version
from normact.kernels.cpu.library_cache import is_whole, sum_path
from normact.kernels.cpu.native_library import ISA_FLAGS, ISA_VARIABLE, NativeLibrary, processor_flags

logger = logging.getLogger(__name__)

LIBRARY_FOLDER = Path(__file__).parent / "prebuilt_libraries"
OLDEST_TORCH = (2, 10)
_STABLE_VERSION = (OLDEST_TORCH[0] << 56) | (OLDEST_TORCH[1] << 48)

_AVX2 = frozenset("avx2 bmi1 bmi2 f16c fma movbe".split())
# What the compiler may use for each of ISA_FLAGS, as Linux calls it; the best first.
ISA_NEEDS: Dict[str, FrozenSet[str]] = {
    "avx512": _AVX2 | frozenset("avx512f avx512bw avx512cd avx512dq avx512vl".split()),
    "avx2": _AVX2,
    "baseline": frozenset(),
}


def prebuilt_library() -> Optional[Path]:
    """Return the wheel's library for this torch and processor; None where there is none, or it is damaged.

    $PROXYNORM_KERNEL_ISA names another instruction set than the best; with "native" the kernels are built here.
    """
    if not LIBRARY_FOLDER.is_dir():
        return None
    if torch_version() < OLDEST_TORCH:
        logger.info("the wheel's kernels need torch %d.%d or later, and this is %s", *OLDEST_TORCH, torch.__version__)
        return None
    for name in _instruction_sets():
        library = LIBRARY_FOLDER / _file_name(name)
        if library.exists():
            if is_whole(library):
                return library
            logger.warning("%s is damaged: its sum is another one; installing normact again mends it", library)
    return None


def build_prebuilt_libraries(folder: Path = LIBRARY_FOLDER) -> List[Path]:
    """Build the libraries of a wheel for machines of this kind, with their sums.

    Args:
        folder: theirs; made, or emptied first.

    Raises:
        BuildError: as NativeLibrary.build; ValueError: this torch is too old.
    """
    if torch_version() < OLDEST_TORCH:
        raise ValueError(f"torch {torch.__version__} has no stable interface; build with {OLDEST_TORCH} or later")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    made = []
    for name in ISA_NEEDS if is_x86 else ["baseline"]:
        built = stable_kernels().build([*OPTIMIZATION_FLAGS, *ISA_FLAGS[name]])
        library = folder / _file_name(name)
        shutil.copyfile(built, library)
        shutil.copyfile(sum_path(built), sum_path(library))
        made.append(library)
    return made


def stable_kernels() -> NativeLibrary:
    """Return the kernels for every torch from OLDEST_TORCH on."""
    torch_folder = os.path.dirname(torch.__file__)
    libraries = os.path.join(torch_folder, "lib")
    return NativeLibrary(
        name="normact_stable_kernels.so",
        folder=SOURCE_FOLDER,
        title="the CPU kernels of a wheel",
        duration="about a minute for each instruction set",
        cache_prefix="stable",
        compile_flags=(
            f"-std={language_standard()}",
            "-DNORMACT_STABLE_ABI",
            f"-DTORCH_TARGET_VERSION={_STABLE_VERSION:#x}ULL",
            # The wheel holds no path of this machine. The compiler follows links where that makes a path shorter.
            f"-ffile-prefix-map={SOURCE_FOLDER}=normact",
            f"-ffile-prefix-map={torch_folder}=torch",
            f"-ffile-prefix-map={os.path.realpath(torch_folder)}=torch",
            *include_flags(),
        ),
        # No path of torch: it is loaded before, and found by its name.
        link_flags=(f"-L{libraries}", "-ltorch_cpu"),
        built_for=(torch.__version__,),
    )


def _instruction_sets() -> List[str]:
    """Those that this processor has, or the one that was asked for, if it has it; the best first."""
    wanted = os.environ.get(ISA_VARIABLE)
    has = frozenset(processor_flags().split())
    return [name for name, needs in ISA_NEEDS.items() if needs <= has and wanted in (None, "", name)]


def _file_name(instructions: str) -> str:
    return f"normact_kernels_{instructions}.so"
