"""Whole runs where the machine fails them: the disk, the shared memory, the compiler and its cache."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
from pathlib import Path
from typing import Callable

import pytest
from real_runs import (
    PYTHON,
    ROOT,
    SMALL,
    assert_same_result,
    is_alive,
    newest_step,
    run,
    start,
    status,
    wait_until,
)

from normact.kernels.cpu import build, native_library

IN_A_NAMESPACE = ["unshare", "-rm", "sh", "-e", "-c"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same run where nothing fails."""
    folder = tmp_path_factory.mktemp("straight")
    assert run(folder) == 0
    return folder


def may_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    return (
        subprocess.run([*IN_A_NAMESPACE, "mount -t tmpfs tmpfs /mnt"], check=False, capture_output=True).returncode == 0
    )


needs_mounts = pytest.mark.skipif(not may_mount(), reason="this user may not mount in a namespace (unshare -rm)")


# ---- disk and memory ----


@needs_mounts
def test_a_disk_that_fills_up_ends_a_run_with_74_and_with_more_room_it_goes_on_to_the_same_bits(
    straight: Path, tmp_path: Path
) -> None:
    """A disk of half of what the run writes. The folder is copied out: a mount ends with its namespace."""
    size = sum(path.stat().st_size for path in straight.rglob("*") if path.is_file()) // 2
    disk, full, done = tmp_path / "disk", tmp_path / "full", tmp_path / "done"
    disk.mkdir()
    command = subprocess.list2cmdline([*PYTHON, "train.py", *SMALL, "--output-dir", str(disk / "run")])
    script = f"""
mount -t tmpfs -o size={size} tmpfs {disk}
{command} && exit 1 || echo first $? >&2
cp -r {disk}/run {full}
mount -o remount,size=64m {disk}
{command} --resume
cp -r {disk}/run {done}
"""
    ended = subprocess.run([*IN_A_NAMESPACE, script], cwd=ROOT, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "first 74\n" in ended.stderr
    assert "error: disk full: need " in ended.stderr and "Traceback" not in ended.stderr
    assert (status(full)["state"], status(full)["exit_code"]) == ("failed", 74)
    assert "disk full" in status(full)["reason"]
    assert 0 < newest_step(full) < 8  # it broke off in the middle, and what was there stayed
    assert not [path for path in full.rglob("*") if path.name.endswith(".partial")]
    assert_same_result(straight, done)


@needs_mounts
def test_a_shared_memory_of_256_kib_costs_a_run_nothing(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [*SMALL, "--output-dir", str(folder), "--set", "data.workers=2"]
    command = subprocess.list2cmdline([*PYTHON, "train.py", *arguments])
    script = f"mount -t tmpfs -o size=256k tmpfs /dev/shm; exec {command}"
    ended = subprocess.run([*IN_A_NAMESPACE, script], cwd=ROOT, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "share memory" not in ended.stderr
    assert_same_result(straight, folder)


# ---- the kernels' library ----

# Like g++, which starts other processes: each tells its id and that of its child.
COMPILER_THAT_WAITS = """#!/bin/sh
[ "$1" = "-dumpfullversion" ] && exit 0
sleep 3600 &
echo $! $$ >> "$(dirname "$0")/processes"
wait
"""
COMPILER_THAT_COPIES = """#!/bin/sh
echo run >> "$(dirname "$0")/runs"
while [ $# -gt 0 ]; do
  [ "$1" = "-o" ] && cp LIBRARY "$2"
  shift
done
exit 0
"""


def write_compiler(folder: Path, program: str) -> Path:
    path = folder / "c++"
    path.write_text(program)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_signal_while_the_kernels_are_built_ends_the_run_and_its_compilers(tmp_path: Path) -> None:
    compiler, folder, cache = write_compiler(tmp_path, COMPILER_THAT_WAITS), tmp_path / "run", tmp_path / "cache"
    environment = {"CXX": str(compiler), native_library.CACHE_VARIABLE: str(cache)}
    process = start(folder, launcher=PYTHON, **environment)
    started = tmp_path / "processes"
    sources = sum(path.suffix == ".cpp" for path in build.kernels().source_files())
    wait_until(
        lambda: process.poll() is not None or (started.exists() and len(started.read_text().split()) == 2 * sources)
    )
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 75, output
    assert status(folder)["state"] == "preempted" and "Traceback" not in output
    wait_until(lambda: not any(is_alive(int(word)) for word in started.read_text().split()))
    assert not list(cache.rglob(".build-*"))


def cut(library: Path) -> None:
    os.truncate(library, library.stat().st_size // 2)


def make_zero(library: Path) -> None:
    library.write_bytes(bytes(library.stat().st_size))


def make_empty(library: Path) -> None:
    library.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [cut, *(pytest.param(damage, marks=pytest.mark.slow) for damage in (make_zero, make_empty))]
)
def test_a_run_builds_a_damaged_kernel_library_anew_and_gives_the_same_bits(
    straight: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """Loading one would end the process with SIGBUS or SIGSEGV. The compiler copies the library of this machine."""
    good = build.build_library()
    compiler = write_compiler(tmp_path, COMPILER_THAT_COPIES.replace("LIBRARY", str(good)))
    environment = {"CXX": str(compiler), native_library.CACHE_VARIABLE: str(tmp_path / "cache")}
    build_it = [*PYTHON, "-c", "from normact.kernels.cpu import build; print(build.build_library())"]
    built = subprocess.run(
        build_it, cwd=ROOT, env={**os.environ, **environment}, check=True, capture_output=True, text=True
    )
    library, runs = Path(built.stdout.strip()), tmp_path / "runs"
    damage(library)
    before = len(runs.read_text().splitlines())
    process = start(tmp_path / "run", launcher=PYTHON, **environment)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert len(runs.read_text().splitlines()) > before + 1  # more than asking for its version
    assert library.read_bytes() == good.read_bytes()
    assert_same_result(straight, tmp_path / "run")
