"""The report of a first day on IPUs: real processes, on the emulator or made to fail."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Sequence

import pytest

from backends.ipu_report import __main__ as command
from backends.ipu_report.series import MARK, SPEED_EXPERIMENTS, Step, steps
from backends.plan.hardware import SYSTEMS
from configs import load_config
from models import NETWORKS

EMULATED = ["--device", "ipu_emulator", "--system", "mk2", "--ipus", "1"]


def reported(output: Path, *arguments: str) -> Dict[str, Any]:
    command.main([*arguments, "--output", str(output)])
    report: Dict[str, Any] = json.loads(output.read_text())
    return report


def replaced_steps(monkeypatch: pytest.MonkeyPatch, *series: Step) -> None:
    monkeypatch.setattr(command, "steps", lambda emulated: list(series))


def test_the_series_goes_from_what_all_need_to_what_a_training_does() -> None:
    for emulated in (False, True):
        names = [step.name for step in steps(emulated)]
        assert names[:4] == ["attach", "compile", "layer", "updates"]
        assert len(names) == 4 + 3
        # A network that is too large says nothing of the next.
        assert [step.is_independent for step in steps(emulated)] == [False] * 4 + [True] * 3
    for name in SPEED_EXPERIMENTS[False]:
        load_config(name)
    assert set(SPEED_EXPERIMENTS[True]) <= set(NETWORKS)


@pytest.mark.slow
def test_the_whole_series_passes_on_the_emulator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = reported(tmp_path / "report.json", *EMULATED)
    assert [step["status"] for step in report["steps"]] == ["passed"] * 7, report["steps"]
    attach, compiled, layer, updates, *speeds = (step["found"] for step in report["steps"])
    assert attach["hardware_version"] == 2
    assert compiled["difference"] < 1e-6
    assert set(layer["differences"]) == {"output", "weight", "bias", "proxy_beta", "proxy_gamma"}
    assert len(updates["updates"]) == 4
    for row in updates["updates"]:
        assert row["loss"] == pytest.approx(row["cpu_loss"], rel=1e-4)
    for speed in speeds:
        low, middle, high = speed["planned_images_per_second"]
        assert low < middle < high
        assert speed["images_per_second"] < low  # a CPU pretends to be an IPU
        assert not speed["is_within_the_plan"]
    assert "7/7 speed:efficientnet_small" in capsys.readouterr().out


def test_the_first_failure_that_all_later_steps_would_repeat_ends_the_series(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    series = [Step("attach", "an IPU", 300.0), Step("compile", "", 300.0), Step("speed:resnet8", "", 300.0, True)]
    replaced_steps(monkeypatch, *series)
    # Graphcore's PopTorch is not installed here.
    report = reported(tmp_path / "report.json", "--system", "c600", "--ipus", "1")
    attach, compiled, speed = report["steps"]
    assert attach["status"] == "failed"
    assert attach["ended"] == "exit code 1"
    assert "PopTorch is not installed" in attach["output"][-1]
    assert compiled["status"] == speed["status"] == "not run: attach failed"
    assert "(attach failed)" in capsys.readouterr().out


def fake_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Make each step's process run this program instead."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\n{program}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


@pytest.mark.parametrize(
    ("program", "status", "part"),
    [
        ("import os; print('before', flush=True); os.abort()", "failed", "exit code -6"),
        ("import time; print('compiling', flush=True); time.sleep(600)", "failed", "no end after 3 s"),
        ("print('nothing found')", "failed", "exit code 0"),
        (f"print('{MARK}' + '{{}}')", "passed", ""),
    ],
    ids=["abort", "hang", "no result", "pass"],
)
def test_a_step_that_dies_or_hangs_fails_and_leaves_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, status: str, part: str
) -> None:
    fake_step(tmp_path, monkeypatch, program)
    replaced_steps(monkeypatch, Step("speed:any", "", 3.0, True), Step("speed:other", "", 3.0, True))
    report = reported(tmp_path / "report.json", *EMULATED)
    assert [step["status"] for step in report["steps"]] == [status] * 2  # one network says nothing of the next
    if status == "failed":
        assert report["steps"][0]["ended"] == part
        assert len(report["steps"][0]["output"]) == 1


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            {"images_per_second": 900.0, "planned_images_per_second": [800.0, 1e3, 1200.0]},
            "900 images/s, planned 1,000",
        ),
        ({"refused_by_the_plan": ["stage 1 needs too much"]}, "the plan refuses it: stage 1 needs too much"),
        ({}, ""),
    ],
)
def test_a_result_is_told_in_a_line(found: Dict[str, Any], words: str) -> None:
    assert words in command.summary({"status": "passed", "found": found}, "ipu")


def test_the_emulators_speed_is_said_to_be_its_own() -> None:
    found = {"images_per_second": 9.0, "planned_images_per_second": [800.0, 1e3, 1200.0]}
    words = "9 images/s of the emulator, which says nothing about an IPU, planned 1,000"
    assert words in command.summary({"status": "passed", "found": found}, "ipu_emulator")


def test_the_report_names_no_user_host_or_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPUOF_VIPU_API_HOST", "secret-host")
    text = json.dumps(command.describe_machine())
    assert "IPUOF_VIPU_API_HOST" in text
    assert "secret-host" not in text
    assert str(Path.home()) not in text or str(Path.home()) == "/"
    assert re.search(r'"cores": \d+', text)


@pytest.mark.parametrize("arguments", [["--system", "mk2", "--ipus", "3"], ["--system", "c600", "--ipus", "0"]])
def test_wrong_numbers_of_ipus_are_errors_before_anything_runs(
    arguments: List[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = command.main(arguments)
    except SystemExit as error:  # of the parser, for what is no number of anything
        code = error.code
    assert code == 2
    assert "error: " in capsys.readouterr().err


def test_every_kind_of_ipu_can_be_asked_for() -> None:
    action = next(each for each in command._parser()._actions if each.dest == "system")
    choices: Sequence[str] = list(action.choices or ())
    assert set(choices) == set(SYSTEMS)
