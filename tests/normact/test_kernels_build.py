"""Building and caching the kernels' library: processes at once, dead locks, failing compilers, old torch."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normact import NormActFactory, kernels
from normact.kernels import operators
from normact.kernels.cpu import build

FAKE_COMPILER = """#!/bin/sh
echo run >> "$(dirname "$0")/runs"
while [ $# -gt 0 ]; do
  if [ "$1" = "-o" ]; then sleep 0.2; echo built > "$2"; fi
  shift
done
"""


@pytest.fixture
def fake_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes its output files and counts its runs."""
    path = tmp_path / "bin" / "fake-c++"
    path.parent.mkdir()
    path.write_text(FAKE_COMPILER)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path / "cache"))
    return path


def runs_of(compiler: Path) -> int:
    counter = compiler.parent / "runs"
    return len(counter.read_text().splitlines()) if counter.exists() else 0


def sources() -> int:
    return sum(path.suffix == ".cpp" for path in build.source_files())


# The compiler is also asked for its version, once a call.
def test_a_second_call_finds_the_library_of_the_first(fake_compiler: Path) -> None:
    library = build.build_library()
    assert library.read_text() == "built\n" and runs_of(fake_compiler) == sources() + 1 + 1
    assert build.build_library() == library and runs_of(fake_compiler) == sources() + 1 + 2


def test_processes_that_start_together_build_once(fake_compiler: Path) -> None:
    command = [sys.executable, "-c", "from normact.kernels.cpu.build import build_library; print(build_library())"]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {process.communicate(timeout=600)[0].strip() for process in started}
    assert len(paths) == 1 and Path(paths.pop()).exists()
    assert runs_of(fake_compiler) == sources() + 1 + len(started)


def test_the_lock_of_a_dead_process_does_not_stop_a_build(fake_compiler: Path) -> None:
    library = build.build_library()
    library.unlink()
    holder = "import fcntl, os, sys; fcntl.flock(open(sys.argv[1], 'w'), fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", holder, str(library.parent / "lock")], check=False, timeout=600)
    assert build.build_library().exists()


def test_other_flags_or_sources_or_torch_are_built_apart(fake_compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.build_library()
    assert build.build_library(["-O0"]) != first
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert build.build_library() != first


def test_the_variable_chooses_the_instructions_and_an_unknown_name_is_refused(
    fake_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = [build.build_library()]
    for name in ("avx2", "baseline"):
        monkeypatch.setenv(build.ISA_VARIABLE, name)
        libraries.append(build.build_library())
    assert len(set(libraries)) == 3
    assert not any(flag.startswith("-march") for flag in build.optimization_flags())
    monkeypatch.setenv(build.ISA_VARIABLE, "sse9")
    with pytest.raises(build.BuildError, match="PROXYNORM_KERNEL_ISA is 'sse9'; use native, avx2, baseline"):
        build.build_library()


def test_a_failing_compiler_is_one_clear_line(fake_compiler: Path) -> None:
    fake_compiler.write_text("#!/bin/sh\necho 'x.h:1: error: no such thing' >&2\necho more >&2\nexit 1\n")
    with pytest.raises(build.BuildError, match=r"^the compiler failed: x.h:1: error: no such thing$"):
        build.build_library()
    assert not list(Path(os.environ[build.CACHE_VARIABLE]).rglob("*.so"))


def test_an_unwritable_cache_folder_names_the_variable(fake_compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(build.CACHE_VARIABLE, str(fake_compiler))  # a file
    with pytest.raises(build.BuildError, match=build.CACHE_VARIABLE):
        build.build_library()


@pytest.mark.parametrize(
    "environment, torch_version, words",
    [({"CXX": "", "PATH": ""}, torch.__version__, "no C++ compiler"), ({}, "2.0.1", "older than 2.4")],
)
def test_without_compiler_or_new_torch_the_reference_runs_after_one_log_line(
    environment: dict, torch_version: str, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch, "__version__", torch_version)
    monkeypatch.setattr(operators, "_outcome", [])
    x = torch.randn(2, 8, 4, 4)
    with caplog.at_level(logging.WARNING, logger="normact.kernels"):
        layer = NormActFactory(norm="group", num_groups=2)(8, "relu")
        first, second = layer(x), layer(x)
    reason = kernels.why_not_fused(x, 2, "contiguous", "relu")
    assert reason is not None and words in reason
    assert sum(words in record.message for record in caplog.records if record.name.startswith("normact.kernels")) == 1
    assert torch.equal(first, second) and "NormAct" not in first.grad_fn.name()
