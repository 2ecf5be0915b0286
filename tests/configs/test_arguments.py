"""Numbers on command lines: one line that names the option, before anything is done; none is taken for another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest

import analyze
import backends.ipu_report.__main__ as ipu_report
import backends.plan.__main__ as plan
import datasets.pack
import datasets.picture
import evaluate
import models.__main__ as networks
import reproduce
from configs.arguments import MOST_PIXELS, output_folder, real, whole

Main = Callable[[List[str]], Any]
NO_COUNTS = ["0", "-1", "1.5", "nan", "inf", "1e99", "99999999999999999999", "", "é"]
RANDOM_NET = ["random-net", "--norm", "layer", "--out", "none"]
COUNTS = [
    (evaluate.main, ["none"], "--batch-size"),
    (analyze.main, RANDOM_NET, "--width"),
    (analyze.main, RANDOM_NET, "--image-size"),
    (reproduce.main, ["small_batch"], "--jobs"),
    (networks.main, ["resnet20"], "--num-groups"),
    (networks.main, ["resnet20"], "--image-size"),
    (networks.main, ["resnet20"], "--num-classes"),
    (plan.main, ["--model", "resnet20"], "--image-size"),
    (plan.main, ["--model", "resnet20"], "--num-groups"),
    (plan.main, ["--model", "resnet20"], "--global-batch-size"),
    (plan.main, ["--model", "resnet20"], "--micro-batch-size"),
    (plan.main, ["--model", "resnet20"], "--ipus"),
    (ipu_report.main, ["--system", "c600"], "--ipus"),
    (datasets.pack.main, ["none", "none"], "--shard-mib"),
]


@pytest.mark.parametrize(
    ("main", "arguments", "option"), COUNTS, ids=[f"{main.__module__} {name}" for main, _, name in COUNTS]
)
def test_a_count_that_is_none_is_told_with_its_option(
    capsys: pytest.CaptureFixture[str], main: Main, arguments: List[str], option: str
) -> None:
    for text in NO_COUNTS:
        with pytest.raises(SystemExit) as ended:
            main([*arguments, f"{option}={text}"])
        assert ended.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"error: argument {option}: {text} is not a whole number" in error, text


@pytest.mark.parametrize("option", ["--gamma-mean", "--gamma-std", "--beta-std"])
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "one", ""])
def test_a_spread_that_is_no_number_is_told_with_its_option(
    capsys: pytest.CaptureFixture[str], option: str, text: str
) -> None:
    with pytest.raises(SystemExit):
        analyze.main([*RANDOM_NET, f"{option}={text}"])
    assert f"error: argument {option}: {text} is not a number" in capsys.readouterr().err


def test_numbers_within_their_bounds_are_read_as_they_are() -> None:
    assert [whole()("1"), whole(0)("0"), whole(most=MOST_PIXELS)("65536")] == [1, 0, 65536]
    assert [real()("-1e-3"), real(0, 1)("1")] == [-0.001, 1.0]


def test_options_of_a_section_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert ipu_report.main(["--system", "c600", "--ipus", "100000"]) == 2
    assert capsys.readouterr().err == "error: --ipus 100000: Input should be less than or equal to 4096\n"


# Where no file can be made, whoever asks, and why.
NO_FILES = {
    "nowhere/x.png": "nowhere is not a folder; create it",
    "file/x.png": "file is not a folder; create it",
    "folder": "is a folder, where a file is to be",
    ".": "is a folder, where a file is to be",
    "pipe": "it is not a regular file",
    "/dev/null": "it is not a regular file",
    "/proc/x.png": "cannot write to the folder /proc",
}
NO_FOLDERS = {
    "file": "file is not a folder; remove it",
    "file/folder": "file is not a folder; remove it",
    "pipe": "pipe is not a folder; remove it",
    "loop": "loop is not a folder; remove it",
    "/proc/folder": "cannot write to the folder /proc",
}
FILES = [
    (evaluate.main, ["none"], "--out"),
    (evaluate.main, ["none"], "--picture"),
    (analyze.main, ["plot", "none"], "--out"),
    (datasets.picture.main, ["--config", "none"], "--out"),
    (ipu_report.main, ["--system", "c600", "--ipus", "1"], "--output"),
]
FOLDERS = [
    (analyze.main, ["random-net", "--norm", "layer"], "--out"),
    (analyze.main, ["theory"], "--out"),
    (analyze.main, ["power", "--run", "none"], "--out"),
    (analyze.main, ["proxy", "--run", "none"], "--out"),
    (analyze.main, ["compare", "none"], "--out"),
    (analyze.main, ["report", "none"], "--out"),
]


@pytest.mark.parametrize(
    ("main", "arguments", "option", "places"),
    [(*command, NO_FILES) for command in FILES] + [(*command, NO_FOLDERS) for command in FOLDERS],
)
def test_a_place_that_cannot_be_written_is_told_with_its_option_before_anything_is_done(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    main: Main,
    arguments: List[str],
    option: str,
    places: Dict[str, str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder").mkdir()
    Path("loop").symlink_to("loop")
    os.mkfifo("pipe")
    for place, reason in places.items():
        with pytest.raises(SystemExit) as ended:
            main([*arguments, f"{option}={place}"])
        assert ended.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"error: argument {option}: " in error and reason in error, error
    assert sorted(os.listdir()) == ["file", "folder", "loop", "pipe"]


def test_a_folder_that_can_be_made_is_not_made_before_it_is_needed(tmp_path: Path) -> None:
    assert output_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert not list(tmp_path.iterdir())


def test_a_grid_whose_results_cannot_be_written_does_not_begin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    runs = tmp_path / "runs"
    assert reproduce.main(["small_batch", "--results", f"{tmp_path}/file", "--out", str(runs)]) == 2
    assert "file is not a folder" in capsys.readouterr().err and not runs.exists()
