"""The package as others install it: a wheel with normact alone, in an environment without this repository."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import List

import pytest
import torch
from wheel import empty_environment, first_step

import normact
from normact.kernels.cpu.build import torch_version
from normact.kernels.cpu.prebuilt import OLDEST_TORCH

ROOT = Path(__file__).resolve().parent.parent


def _has_setuptools() -> bool:
    try:
        import setuptools
    except ImportError:
        return False
    return int(setuptools.__version__.split(".")[0]) >= 71


def _can_build_kernels() -> bool:
    return _has_setuptools() and sys.platform != "win32" and torch_version() >= OLDEST_TORCH


def build_wheel(folder: Path, kernels: bool) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    environment = {**os.environ, "PROXYNORM_BUILD_KERNELS": str(int(kernels))}
    isolation = ["--no-build-isolation"] if kernels or _has_setuptools() else []
    subprocess.run([*command, *isolation], check=True, cwd=folder, env=environment)
    (wheel,) = folder.glob("*.whl")
    return wheel


def names_in(wheel: Path) -> List[str]:
    with zipfile.ZipFile(wheel) as file:
        return file.namelist()


def install(wheel: Path, folder: Path) -> Path:
    python = empty_environment(folder / "environment")
    subprocess.run([str(python), "-m", "pip", "install", "--no-deps", "--no-index", str(wheel)], check=True)
    return python


def torch_path() -> str:
    return str(Path(torch.__file__).parent.parent)


@pytest.mark.slow
def test_the_wheel_holds_the_layer_alone_and_works_in_an_empty_environment(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, kernels=False)
    assert wheel.name == f"normact-{normact.__version__}-py3-none-any.whl"
    names = names_in(wheel)
    with zipfile.ZipFile(wheel) as file:
        metadata = file.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"normact"}
    assert any(name.endswith(".cpp") for name in names) and "normact/py.typed" in names
    assert not any(name.endswith(".so") for name in names)
    assert "License" in metadata and "Requires-Dist: torch>=2.0.1" in metadata
    version, _, is_fused, path, _ = first_step(install(wheel, tmp_path), tmp_path, {"PYTHONPATH": torch_path()})
    assert (version, is_fused) == (normact.__version__, "False") and str(tmp_path) in path


@pytest.mark.slow
@pytest.mark.skipif(not _can_build_kernels(), reason="kernels are built with torch 2.10 or later and setuptools")
def test_a_wheel_with_kernels_runs_them_without_a_compiler_and_does_without_a_damaged_one(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, kernels=True)
    libraries = [name for name in names_in(wheel) if name.endswith(".so")]
    assert libraries and all(f"{name}.sha256" in names_in(wheel) for name in libraries)
    assert "-py3-none-any" not in wheel.name and "-py3-none-" in wheel.name
    python = install(wheel, tmp_path)
    version, _, is_fused, path, _ = first_step(python, tmp_path, {"PYTHONPATH": torch_path()})
    assert (version, is_fused) == (normact.__version__, "True") and str(tmp_path) in path
    for library in (Path(path).parent / "kernels/cpu/prebuilt_libraries").glob("*.so"):
        library.write_bytes(library.read_bytes()[:-1])
    assert first_step(python, tmp_path, {"PYTHONPATH": torch_path()})[2] == "False"
