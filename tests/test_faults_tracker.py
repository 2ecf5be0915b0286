"""Runs that report to wandb: a server that answers, none, one that never answers, and one that falls silent."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Iterator

import pytest
from fake_tracker import FakeTracker
from real_runs import PYTHON, assert_same_result, run, start, status

# The command with shorter times; a run waits for as long as they say.
PROGRAM = """
import sys, train
from experiment import wandb_tracker
wandb_tracker.INIT_TIMEOUT_SECONDS, wandb_tracker.FINISH_TIMEOUT_SECONDS = map(float, sys.argv[1].split())
from experiment.ending import end_with
end_with(lambda: train.main(sys.argv[3:]))
"""
LONG = "120 120"  # enough on a busy machine
SHORT = "3 3"


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the same run without a tracker."""
    folder = tmp_path_factory.mktemp("straight")
    assert run(folder) == 0
    return folder


def output_of(folder: Path, address: str, seconds: str) -> str:
    """Return what a run prints that reports to this address; it ends with 0."""
    environment = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40}
    process = start(folder, "--set", "run.wandb=online", launcher=[*PYTHON, "-c", PROGRAM, seconds], **environment)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert status(folder)["state"] == "done"
    return output


def test_a_tracker_that_answers_gets_every_record(straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with FakeTracker() as tracker:
        output = output_of(folder, tracker.address, LONG)
    assert "wandb failed" not in output
    assert_same_result(straight, folder)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        row = next(row for row in tracker.history if row["_step"] == record["step"])
        assert row[f"{record['split']}/loss"] == record["loss"]


@contextlib.contextmanager
def address_where(*, someone_listens: bool) -> Iterator[str]:
    """Open a port whose connections are accepted and never answered, or refused."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if someone_listens:
            server.listen(100)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("someone_listens", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_tracker_that_cannot_be_reached_costs_one_warning_and_no_bit(
    straight: Path, tmp_path: Path, someone_listens: bool
) -> None:
    with address_where(someone_listens=someone_listens) as address:
        output = output_of(tmp_path / "run", address, SHORT)
    assert output.count("wandb failed while starting") == 1
    assert "Traceback" not in output
    assert_same_result(straight, tmp_path / "run")


def test_a_tracker_that_falls_silent_does_not_keep_a_finished_run_from_ending(straight: Path, tmp_path: Path) -> None:
    with FakeTracker(is_silent_after_start=True) as tracker:
        output = output_of(tmp_path / "run", tracker.address, LONG.split()[0] + " 3")
    assert not tracker.history and output.count("wandb failed while finishing") == 1, output
    assert_same_result(straight, tmp_path / "run")
