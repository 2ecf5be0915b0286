"""Numbers on command lines: one line that names the option, before anything is done; none is taken for another."""

from __future__ import annotations

from typing import Any, Callable, List

import pytest

import analyze
import backends.ipu_report.__main__ as ipu_report
import backends.plan.__main__ as plan
import datasets.pack
import evaluate
import models.__main__ as networks
import reproduce
from configs.arguments import MOST_PIXELS, real, whole

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


def test_a_report_that_could_not_be_written_is_refused_before_the_first_step(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ipu_report.main(["--system", "c600", "--ipus", "1", "--output", "none/report.json"]) == 2
    assert "--output none/report.json: its folder is not there" in capsys.readouterr().err
