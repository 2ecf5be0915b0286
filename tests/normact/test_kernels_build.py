"""Building and caching the kernels' library: processes at once, dead locks, failing compilers, old torch."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable

import pytest
import torch

from normact import NormActFactory, kernels
from normact.kernels import operators
from normact.kernels.cpu import build, native_library
from normact.kernels.cpu.compiler import BuildError

FAKE_COMPILER = """#!/bin/sh
echo run >> "$(dirname "$0")/runs"
while [ $# -gt 0 ]; do
  if [ "$1" = "-o" ]; then sleep 0.2; echo built > "$2"; fi
  shift
done
"""


@pytest.fixture
def fake_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a compiler that writes its output files and counts its runs."""
    path = tmp_path / "bin" / "fake-c++"
    path.parent.mkdir()
    path.write_text(FAKE_COMPILER)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv(native_library.CACHE_VARIABLE, str(tmp_path / "cache"))
    return path


def runs_of(compiler: Path) -> int:
    counter = compiler.parent / "runs"
    return len(counter.read_text().splitlines()) if counter.exists() else 0


def sources() -> int:
    return sum(path.suffix == ".cpp" for path in build.kernels().source_files())


# The compiler is also asked for its version, once a call.
def test_a_second_call_finds_the_library_of_the_first(fake_compiler: Path) -> None:
    library = build.build_library()
    assert library.read_text() == "built\n" and runs_of(fake_compiler) == sources() + 1 + 1
    assert build.build_library() == library and runs_of(fake_compiler) == sources() + 1 + 2


def test_a_build_says_so_in_one_line_and_what_is_built_says_nothing(
    fake_compiler: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build.build_library()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "building its CPU kernels" in lines[0] and str(fake_compiler) in lines[0]
    build.build_library()
    assert capsys.readouterr().err == ""


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
        monkeypatch.setenv(native_library.ISA_VARIABLE, name)
        libraries.append(build.build_library())
    assert len(set(libraries)) == 3
    assert not any(flag.startswith("-march") for flag in build.optimization_flags())
    monkeypatch.setenv(native_library.ISA_VARIABLE, "sse9")
    with pytest.raises(BuildError, match="PROXYNORM_KERNEL_ISA is 'sse9'; use native, avx512, avx2, baseline"):
        build.build_library()


def test_a_failing_compiler_is_one_clear_line(fake_compiler: Path) -> None:
    fake_compiler.write_text("#!/bin/sh\necho 'x.h:1: error: no such thing' >&2\necho more >&2\nexit 1\n")
    with pytest.raises(BuildError, match=r"^the compiler failed: x.h:1: error: no such thing$"):
        build.build_library()
    assert not list(Path(os.environ[native_library.CACHE_VARIABLE]).rglob("*.so"))


def test_an_unwritable_cache_folder_names_the_variable(fake_compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native_library.CACHE_VARIABLE, str(fake_compiler))  # a file
    with pytest.raises(BuildError, match=native_library.CACHE_VARIABLE):
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


def runs_to_build() -> int:
    return sources() + 1


DAMAGES = {
    "half": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "empty": lambda content: b"",
    "one bit": lambda content: bytes([content[0] ^ 1]) + content[1:],
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
@pytest.mark.parametrize("name", [build.LIBRARY_NAME, build.LIBRARY_NAME + ".sha256"])
def test_what_is_damaged_is_built_again(fake_compiler: Path, name: str, damage: str) -> None:
    library = build.build_library()
    path = library.with_name(name)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    before = runs_of(fake_compiler)
    assert build.build_library().read_text() == "built\n"
    assert runs_of(fake_compiler) == before + 1 + runs_to_build()


def test_a_library_without_a_sum_is_built_again(fake_compiler: Path) -> None:
    library = build.build_library()
    library.with_name(library.name + ".sha256").unlink()
    before = runs_of(fake_compiler)
    build.build_library()
    assert runs_of(fake_compiler) == before + 1 + runs_to_build()


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files to others")
def test_a_library_of_another_user_is_not_loaded_but_built_again(fake_compiler: Path) -> None:
    library = build.build_library()
    planted = b"planted"
    library.write_bytes(planted)
    library.with_name(library.name + ".sha256").write_text(hashlib.sha256(planted).hexdigest())
    os.chown(library, 12345, 12345)
    assert build.build_library().read_text() == "built\n"


def test_a_library_that_others_may_write_to_is_built_again(fake_compiler: Path) -> None:
    library = build.build_library()
    library.chmod(0o777)
    before = runs_of(fake_compiler)
    build.build_library()
    assert runs_of(fake_compiler) == before + 1 + runs_to_build() and library.stat().st_mode & 0o022 == 0


def test_a_link_to_a_library_is_replaced_and_its_target_left_alone(fake_compiler: Path, tmp_path: Path) -> None:
    library = build.build_library()
    target = tmp_path / "target"
    target.write_bytes(library.read_bytes())
    library.unlink()
    library.symlink_to(target)
    target.write_text("planted")
    assert build.build_library().read_text() == "built\n" and not library.is_symlink()
    assert target.read_text() == "planted"


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives folders to others")
@pytest.mark.parametrize("depth", [0, 1])
def test_a_cache_folder_of_another_user_is_refused(fake_compiler: Path, depth: int) -> None:
    folder = build.build_library().parent
    os.chown([folder, folder.parent][depth], 12345, 12345)
    with pytest.raises(BuildError, match=r"belongs to another user, or others may write to it.*a folder of your own"):
        build.build_library()


def test_a_shared_cache_folder_is_refused_unless_it_is_sticky_and_then_parts_are_private(
    fake_compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv(native_library.CACHE_VARIABLE, str(shared))
    with pytest.raises(BuildError, match="others may write to it"):
        build.build_library()
    shared.chmod(0o1777)
    assert build.build_library().parent.stat().st_mode & 0o777 == 0o700


def test_a_relative_cache_folder_is_ignored_or_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(native_library.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert native_library.cache_folder() == Path.home() / ".cache" / "normact"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native_library.cache_folder() == tmp_path / "normact"
    monkeypatch.setenv(native_library.CACHE_VARIABLE, "here")
    with pytest.raises(BuildError, match="PROXYNORM_CACHE_DIR is 'here', a relative path; use an absolute one"):
        native_library.cache_folder()


# A compiler like g++, which starts another process and waits for it. It tells its children's ids.
SLOW_COMPILER = """#!/bin/sh
[ "$1" = "-dumpfullversion" ] && exit 0
sleep 3600 &
echo $! >> "$(dirname "$0")/children"
echo $$ >> "$(dirname "$0")/children"
wait
"""
BUILDER = """
import signal, sys
signal.signal(signal.SIGTERM, lambda number, frame: print("noted", flush=True))
from normact.kernels.cpu.build import build_library
try:
    build_library()
except Exception as error:
    print(error, flush=True)
"""


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> bool:
    """Whether it comes true within a time that is long even on a busy machine."""
    end = time.monotonic() + 600
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc who is alive")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_build_ends_with_its_process_and_leaves_no_compiler_and_no_scratch(
    fake_compiler: Path, number: signal.Signals
) -> None:
    fake_compiler.write_text(SLOW_COMPILER)
    children = fake_compiler.parent / "children"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    process = subprocess.Popen([sys.executable, "-c", BUILDER], env=environment, stdout=subprocess.PIPE, text=True)
    assert wait_until(lambda: children.exists() and len(children.read_text().split()) == 2 * sources())
    process.send_signal(number)
    said = process.communicate(timeout=600)[0]
    assert wait_until(lambda: not any(is_alive(int(child)) for child in children.read_text().split()))
    cache = Path(os.environ[native_library.CACHE_VARIABLE])
    if number == signal.SIGTERM:  # the program's own handler is heard, and the build does not go on
        assert said == "noted\nthe build was stopped by SIGTERM; the next start builds\n"
        assert not list(cache.rglob(".build-*"))
    else:
        assert list(cache.rglob(".build-*"))
    fake_compiler.write_text(FAKE_COMPILER)
    build.build_library()
    assert not list(cache.rglob(".build-*"))


# What Python has on Linux and macOS and not on Windows, as far as this layer or torch's start knows it.
WITHOUT_POSIX = """
import os, signal, sys
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "fork", "getuid", "killpg", "sched_getaffinity", "sysconf"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGXCPU"):
    delattr(signal, name)
import torch
from normact import NormActFactory
x = torch.randn(2, 4, 3, 3, requires_grad=True)
layer = NormActFactory(norm="group", num_groups=2)(4, activation="relu")
layer(x).sum().backward()
print(torch.isfinite(x.grad).all().item())
"""


def test_the_layer_computes_by_its_reference_where_posix_is_missing_and_says_why(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        native_library.CACHE_VARIABLE: str(tmp_path / "cache"),
        "PYTHONPATH": str(build.SOURCE_FOLDER.parents[3]),
    }
    command = [sys.executable, "-c", WITHOUT_POSIX]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert (process.returncode, process.stdout) == (0, "True\n"), process.stderr
    assert "the reference operations run: they are built only on Linux and macOS" in process.stderr
    assert not (tmp_path / "cache").exists()
