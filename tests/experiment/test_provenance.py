"""Where a result comes from: the commit of a repository, and nothing where the program lies in none."""

import subprocess
from pathlib import Path

import pytest
import yaml

from backends import machine
from experiment import provenance


def git(folder: Path, *arguments: str) -> str:
    named = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    return subprocess.run(["git", *named, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_commit_is_that_of_the_programs_own_repository_with_a_mark_for_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "ROOT", tmp_path.resolve())
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit() is None and "commit" not in provenance.provenance("python train.py")
    git(tmp_path, "init")
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    head = git(tmp_path, "rev-parse", "--short", "HEAD").strip()
    assert provenance.commit() == head
    (tmp_path / "file").write_text("two")
    assert provenance.commit() == f"{head} with changes"
    (tmp_path / "inner").mkdir()
    monkeypatch.setattr(provenance, "ROOT", (tmp_path / "inner").resolve())
    assert provenance.commit() is None  # a repository of something else


def test_a_comment_of_it_keeps_a_file_yaml_whatever_was_on_the_command_line() -> None:
    origin = provenance.provenance("python train.py --set 'a=b\nc: d' --config x\x1b[2J\x85y")
    text = provenance.as_comment(origin) + "model: 1\n"
    assert yaml.safe_load(text) == {"model": 1}
    assert origin["versions"]["torch"] in text


@pytest.mark.parametrize(
    ("information", "words"),
    [
        ("processor : 0\nflags\t: fpu avx2 avx512f amx_bf16\n", "AVX-512, bfloat16 instructions"),
        ("flags : fpu avx2 avx512f avx512_bf16\n", "AVX-512, bfloat16 instructions"),
        ("flags : fpu avx2 avx512f\nmodel name : amx_bf16\n", "AVX-512, no bfloat16 instructions"),
        ("flags : avx2\n", "AVX2, no bfloat16 instructions"),
        ("Features : fp asimd bf16\n", "no AVX2, bfloat16 instructions"),
        (None, "no AVX2, no bfloat16 instructions"),
    ],
)
def test_the_machines_class_names_its_vector_instructions(
    information: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    if information is not None:
        path.write_text(information)
    monkeypatch.setattr(machine, "CPU_INFORMATION", path)
    machine.cpu_flags.cache_clear()
    try:
        assert machine.machine_class().endswith(f" cores, {words}")
    finally:
        machine.cpu_flags.cache_clear()
