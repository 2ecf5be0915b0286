"""A wheel with kernels, tried as others meet it.

    python tests/wheel.py dist/normact-*.whl --torch 2.13.0 2.10.0

For each torch an empty environment is made, torch and the wheel are installed with pip, and a layer takes its first
step: without a compiler, with no cache of kernels. It must run the wheel's kernels, agree with the reference in
float64, and leave no cache behind. The exit code is 1 where it does not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Dict, List, Optional

# The first step of a layer and its agreement with the reference.
PROGRAM = """
import time
start = time.monotonic()
import copy, sys, torch, normact
layer = normact.NormActFactory(norm="group", num_groups=4)(8, activation="silu")
x = torch.randn(2, 8, 5, 5, requires_grad=True)
out = layer(x)
out.square().sum().backward()
seconds = time.monotonic() - start
exact = x.detach().double().requires_grad_()
reference = copy.deepcopy(layer).double()(exact)
reference.square().sum().backward()
assert (out - reference).abs().max() < 1e-5 and (x.grad - exact.grad).abs().max() < 1e-4, "not the layer's formula"
print(normact.__version__, torch.__version__, normact.has_fused_kernels(), normact.__file__, f"{seconds:.1f}", sep="|")
"""


def first_step(python: Path, folder: Path, environment: Optional[Dict[str, str]] = None) -> List[str]:
    """Return PROGRAM's words in an environment without compiler and cache: versions, whether fused, path, seconds.

    Args:
        python: an environment's.
        folder: an empty one, the home of the process.
        environment: more variables.
    """
    variables = {"PATH": "", "HOME": str(folder), "PROXYNORM_CACHE_DIR": str(folder / "cache"), **(environment or {})}
    kept = {name: value for name, value in os.environ.items() if name not in ("CXX", "PYTHONPATH")}
    process = subprocess.run(
        [str(python), "-c", PROGRAM],
        cwd=folder, env={**kept, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if process.returncode != 0:
        raise RuntimeError(process.stderr)
    assert not (folder / "cache").exists(), "kernels were built"
    return process.stdout.strip().splitlines()[-1].split("|")


def empty_environment(folder: Path) -> Path:
    """Return the interpreter of a new environment with nothing but pip."""
    venv.create(folder, with_pip=True)
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", nargs="+", default=[""], help="versions; the newest that pip finds by default")
    options = parser.parse_args()
    failed = False
    for version in options.torch:
        folder = Path(tempfile.mkdtemp(prefix="wheel-"))
        try:
            python = empty_environment(folder / "environment")
            torch = f"torch=={version}" if version else "torch"
            start = time.monotonic()
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", torch, "numpy"], check=True)
            middle = time.monotonic()
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", str(options.wheel.resolve())], check=True)
            seconds = time.monotonic() - middle
            found, torch_version, is_fused, _, step = first_step(python, folder)
            failed |= is_fused != "True"
            print(
                f"normact {found}, torch {torch_version}: {'the wheel' if is_fused == 'True' else 'NO'} kernels; "
                f"torch {middle - start:.0f} s, the wheel {seconds:.0f} s, the first step {step} s with its imports",
                flush=True,
            )
        except (AssertionError, RuntimeError, subprocess.CalledProcessError) as error:
            failed = True
            print(f"torch {version or 'newest'}: {error}", flush=True)
        finally:
            shutil.rmtree(folder)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
