"""The folder of a run while the run goes on: another one in its place is noticed."""

import shutil
from pathlib import Path
from typing import Callable

import pytest

from experiment.run_folder import RunFolder, RunFolderGoneError


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
