"""The wheel's one decision that pyproject.toml cannot take: whether the CPU kernels are inside.

By default they are not: the wheel is pure Python and builds them at first use. With $PROXYNORM_BUILD_KERNELS=1 they are
built now, by this environment's compiler and its torch, which has to be 2.10 or later; `make wheel` does that.
"""

import os
import sys
from pathlib import Path
from typing import List, Tuple

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithKernels(build_py):
    def run(self) -> None:
        super().run()
        sys.path.insert(0, str(ROOT))
        from normact.kernels.cpu.prebuilt import LIBRARY_FOLDER, build_prebuilt_libraries

        build_prebuilt_libraries(Path(self.build_lib).resolve() / LIBRARY_FOLDER.relative_to(ROOT))

    def get_outputs(self, include_bytecode: bool = True) -> List[str]:
        libraries = (Path(self.build_lib) / "normact/kernels/cpu/prebuilt_libraries").glob("*")
        return [*super().get_outputs(include_bytecode), *map(str, libraries)]


class PlatformWheel(bdist_wheel):
    def get_tag(self) -> Tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


class PlatformDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


if os.environ.get("PROXYNORM_BUILD_KERNELS") == "1":
    setup(distclass=PlatformDistribution, cmdclass={"build_py": BuildWithKernels, "bdist_wheel": PlatformWheel})
else:
    setup()
