"""The folder of a run while the run goes on: another one in its place is noticed."""

import os
import shutil
from pathlib import Path
from typing import Callable

import pytest

import train
from experiment.run_folder import RunFolder, RunFolderError, RunFolderGoneError


def replace(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.mkdir()
    (path / "run.lock").touch()


@pytest.mark.parametrize(
    "lose",
    [shutil.rmtree, lambda path: path.rename(path.with_name("elsewhere")), replace],
    ids=["deleted", "renamed", "another in its place"],
)
def test_a_folder_that_is_gone_is_an_error_and_is_not_made_anew(tmp_path: Path, lose: Callable[[Path], None]) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.acquire(resume=False)
    folder.check_there()
    lose(folder.path)
    with pytest.raises(RunFolderGoneError, match="run is gone: it was deleted, renamed or unmounted"):
        folder.check_there()
    folder.release()


def test_a_folder_that_nobody_holds_is_not_looked_at(tmp_path: Path) -> None:
    RunFolder(tmp_path / "run").check_there()  # a process that is not the primary one


FILES = ["config.yaml", "status.json", "metrics.jsonl", "metrics.csv", "power.jsonl", "summary.json", "curves.png"]


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["a folder", "a pipe"])
@pytest.mark.parametrize("name", FILES)
def test_what_stands_where_a_run_writes_a_file_is_noticed_before_it_begins(
    tmp_path: Path, name: str, make: Callable[[Path], None], resume: bool
) -> None:
    make(tmp_path / name)
    with pytest.raises(RunFolderError, match=f"{name}.*where a file is to be; a run writes it: remove what is there"):
        RunFolder(tmp_path).acquire(resume)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]  # no lock either


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard"])
@pytest.mark.parametrize(
    "make",
    [Path.touch, lambda path: path.symlink_to(path.name), lambda path: path.symlink_to("nowhere")],
    ids=["a file", "a loop of links", "a link to nowhere"],
)
def test_what_stands_where_a_run_makes_a_folder_is_noticed_before_it_begins(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(tmp_path / name)
    with pytest.raises(RunFolderError, match=f"{name} is no folder, and a run makes one of this name; remove it"):
        RunFolder(tmp_path).acquire(False)


def test_a_link_to_a_folder_of_checkpoints_elsewhere_is_followed(tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "large disk")
    folder = RunFolder(tmp_path / "run")
    folder.acquire(False)
    folder.release()


def test_a_run_whose_summary_could_not_be_written_does_not_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "summary.json").mkdir()
    assert train.main(["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'summary.json'} is a folder") and error.count("\n") == 1
