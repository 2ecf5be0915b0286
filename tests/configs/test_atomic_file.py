"""The one writer of whole files: it follows no planted links, and files are for whom the umask says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Callable, List

import pytest

import train
from analysis.results_file import write_results
from configs.atomic_file import open_without_following, partial_files, replace_file
from configs.bounded_file import read_bounded
from datasets.fetch_lock import fetch_lock
from datasets.shards.store import FolderStore
from experiment.metrics_log import MetricsLog, write_status
from experiment.run_folder import RunFolder, RunFolderError

ROOT = Path(__file__).parent.parent.parent


def target_of(folder: Path, *names: str) -> Path:
    """Return a file of the victim, with links to it planted in the folder under these names."""
    target = folder.parent / "target"
    target.write_text("precious")
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).symlink_to(target)
    return target


WRITERS: List[Callable[[Path], None]] = [
    lambda path: replace_file(path, b"new"),
    lambda path: FolderStore(path.parent).write_index(path.name, b"new"),
    lambda path: write_results(path, {"new": 1}),
    lambda path: write_status(path, "done", "new", 0, 1),
]


@pytest.mark.parametrize("write", WRITERS, ids=["replace_file", "write_index", "write_results", "write_status"])
def test_a_link_in_the_place_of_a_file_is_replaced_and_one_of_a_temporary_name_is_not_used(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    folder = tmp_path / "shared"
    target = target_of(folder, "x.json", ".x.json.partial", ".part-x")
    write(folder / "x.json")
    assert target.read_text() == "precious"
    assert not (folder / "x.json").is_symlink() and "new" in (folder / "x.json").read_text()


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_is_for_whom_the_umask_says(tmp_path: Path, umask: int, mode: int) -> None:
    code = f"import os; os.umask({umask}); from pathlib import Path; from configs.atomic_file import replace_file;"
    code += f"replace_file(Path({str(tmp_path / 'x')!r}), b'')"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert (tmp_path / "x").stat().st_mode & 0o777 == mode


def test_an_error_of_any_kind_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    def stop(point: str) -> None:
        if point == "mid_write":
            raise KeyboardInterrupt

    replace_file(tmp_path / "x", b"old")
    with pytest.raises(KeyboardInterrupt):
        replace_file(tmp_path / "x", b"new", passing=stop)
    assert (tmp_path / "x").read_bytes() == b"old" and os.listdir(tmp_path) == ["x"]
    assert partial_files(tmp_path / "missing") == []


def test_a_lock_that_is_a_link_is_refused_and_its_target_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    target = target_of(folder, "run.lock", ".data.lock")
    with pytest.raises(RunFolderError, match=r"run\.lock cannot be opened: it is a symbolic link, .* not followed"):
        RunFolder(folder).acquire(resume=False)
    with pytest.raises(OSError, match="it is a symbolic link"), fetch_lock(folder, "data"):
        pass
    assert target.read_text() == "precious"


def test_a_log_that_is_a_link_is_not_appended_to(tmp_path: Path) -> None:
    target = target_of(tmp_path / "run", "metrics.jsonl")
    with pytest.raises(OSError, match="it is a symbolic link"):
        MetricsLog(tmp_path / "run" / "metrics.jsonl").append_record({"split": "train", "step": 1})
    assert target.read_text() == "precious"


def test_a_whole_run_writes_through_no_planted_link(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    names = ["config.yaml", ".config.yaml.partial", "summary.json", "status.json", ".status.json.partial", "curves.png"]
    target = target_of(folder, *names)
    arguments = ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(folder)]
    for setting in ("data.num_train_images=64", "data.num_eval_images=10", "schedule.epochs=1"):
        arguments += ["--set", setting]
    assert train.main(arguments) == 0
    assert target.read_text() == "precious"
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_is_judged_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, over the limit of 4"):
        read_bounded(path, 4)
    with open(path, "wb") as file:
        file.truncate(1 << 40)  # a hole of a terabyte takes no room
    with pytest.raises(OSError, match="it has 1,099,511,627,776 bytes"):
        read_bounded(path, 1 << 30)
    os.mkfifo(tmp_path / "pipe")
    for endless in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            read_bounded(endless, 5)
    with pytest.raises(IsADirectoryError):
        read_bounded(tmp_path, 5)
    descriptor = open_without_following(tmp_path / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.close(descriptor)
