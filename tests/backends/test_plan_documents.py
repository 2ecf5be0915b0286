"""The planner's numbers in docs/ipu.md are what its commands print."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest

from backends.plan.__main__ import main

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "ipu.md").read_text()
RESNET = ["--config", "rn50_gn8pn_ipu", "--ipus", "1"]


@pytest.mark.parametrize(
    ("arguments", "first"),
    [(["--published"], ""), ([*RESNET, "--compare-norms", "32"], "fullest of 1 IPU")],
    ids=["published", "compare-norms"],
)
def test_the_document_has_the_output_of_the_command(
    arguments: List[str], first: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    lines = [line for line in printed[printed.index(first) :].splitlines() if line]
    assert len(lines) > 5
    assert [line for line in lines if f"\n    {line.rstrip()}\n" not in DOCUMENT] == []


def test_the_document_has_the_images_per_second_of_wider_weights(capsys: pytest.CaptureFixture[str]) -> None:
    speeds = []
    for precision in ("16.16", "16.32"):
        main(["--config", "rn50_gn8pn_ipu", "--system", "c600", "--ipus", "1", "--precision", precision])
        line = next(line for line in capsys.readouterr().out.splitlines() if "images/s expected" in line)
        speeds.append(float(line.split()[0].replace(",", "")))
    assert f"estimated at {speeds[1] / speeds[0]:.0%} of these images/s" in DOCUMENT


def test_the_document_says_what_the_cycles_of_small_operations_decide(capsys: pytest.CaptureFixture[str]) -> None:
    command = [*RESNET, "--system", "c600"]
    assert main(command) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "for an operation on values of channels" in line]
    assert len(lines) == 1
    assert f"\n    {lines[0]}\n" in DOCUMENT
