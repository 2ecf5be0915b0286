"""The package as others install it: a wheel with normact alone, in an environment without this repository."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import normact

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import sys, torch, normact
layer = normact.NormActFactory(norm="group", num_groups=4)(8, activation="relu")
print(normact.__version__, normact.__file__, tuple(layer(torch.randn(2, 8, 5, 5)).shape))
"""


@pytest.mark.slow
def test_the_wheel_holds_the_layer_alone_and_works_in_an_empty_environment(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([*build, "--no-build-isolation"] if _has_setuptools() else build, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"normact-{normact.__version__}-")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        metadata = file.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"normact"}
    assert any(name.endswith(".cpp") for name in names) and "normact/py.typed" in names
    assert "License" in metadata and "Requires-Dist: torch>=2.0.1" in metadata

    empty = tmp_path / "environment"
    venv.create(empty, with_pip=True)
    python = empty / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([str(python), "-m", "pip", "install", "--no-deps", "--no-index", str(wheel)], check=True)
    torch_path = str(Path(sys.modules["torch"].__file__ or "").parent.parent)
    ran = subprocess.run(
        [str(python), "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": torch_path},
        check=True,
        capture_output=True,
        text=True,
    )
    version, path, shape = ran.stdout.split(" ", 2)
    assert version == normact.__version__ and str(empty) in path and shape.strip() == "(2, 8, 5, 5)"


def _has_setuptools() -> bool:
    try:
        import setuptools
    except ImportError:
        return False
    return int(setuptools.__version__.split(".")[0]) >= 68
