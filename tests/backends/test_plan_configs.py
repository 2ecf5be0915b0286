"""Every experiment for IPUs has a plan that is estimated to fit the systems that its first lines and the table name."""

import re
from pathlib import Path
from typing import Any, List

import pytest

from backends.plan.__main__ import main
from backends.plan.systems_table import SYSTEM_SIZES
from configs import config_names

ROOT = Path(__file__).resolve().parents[2]
FOR_IPUS = [name for name in config_names() if name.endswith("_ipu")]


@pytest.mark.slow
@pytest.mark.parametrize("name", FOR_IPUS)
def test_a_shipped_config_fits_every_pod_as_the_documented_table_and_its_first_lines_say(
    name: str, capsys: Any
) -> None:
    arguments = ["--config", name, "--systems"]
    # It does not fit a C2, which the table says.
    assert main(arguments) == (2 if name == "en_b2_gn4pn_ipu" else 0)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {name} ")]
    documented = (ROOT / "docs" / "ipu.md").read_text().splitlines()
    assert printed == [line for line in documented if line.startswith(f"| {name} ")]
    assert len(printed) == len(SYSTEM_SIZES) == 8
    command = (ROOT / "configs" / "ipu" / f"{name}.yaml").read_text()
    started = re.search(r"--num-replicas (\d+) --ipus-per-replica (\d+) ", command)
    assert started is not None
    assert f"| {name} | mk2, 16 | {started[1]} | {started[2]} |" in "\n".join(printed)


def test_the_table_of_systems_says_which_one_is_too_small_and_why(capsys: Any) -> None:
    command = ["--config", "fashion_rn20_gn8pn", "--systems", "--splits", "--set", "batch.global_batch_size=32"]
    assert main(command) == 2
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    pods = [f"{kind}, {ipus}" for kind in ("mk1", "mk2") for ipus in (4, 16, 64)]
    assert [row[1] for row in rows] == ["c600, 1", "c2, 2", *pods]
    assert [row[2:4] for row in rows[:2] + rows[5:7]] == [["1", "1"], ["2", "1"], ["4", "1"], ["16", "1"]]
    assert rows[7][2].startswith("refused: global_batch_size 32 is not an integer x micro_batch_size 1 x 64 replicas")


def test_a_plan_that_does_not_fit_is_told_by_the_exit_status() -> None:
    command = ["--config", "fashion_rn20_gn8pn", "--ipus", "1", "--splits"]
    assert main([*command, "--global-batch-size", "64", "--micro-batch-size", "64"]) == 0
    assert main([*command, "--global-batch-size", "65536", "--micro-batch-size", "65536"]) == 2


@pytest.mark.parametrize(
    "given", [["--system", "c600"], ["--ipus", "4"], ["--compare-norms", "8"], ["--plot", "x.png"]]
)
def test_what_the_table_of_systems_would_ignore_is_refused(
    given: List[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", "resnet8", "--systems", *given]) == 2
    assert f"{given[0]} has no effect with --systems; leave it out" in capsys.readouterr().err
