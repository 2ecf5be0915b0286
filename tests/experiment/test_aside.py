"""Checkpoints written while the training goes on: the same bits, one at a time, and no error is lost."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch

import train
from experiment import continuation
from experiment.aside import Aside
from experiment.checkpoint import load_checkpoint, save_checkpoint
from experiment.run_output import RunOutput

LONG_SECONDS = 120.0  # only a failure takes as long
SMALL = ["--config", "generated_smoke", "--device", "cpu"]
for setting in (
    *("data.num_train_images=192", "data.num_eval_images=20", "schedule.epochs=3", "run.evaluate_training_images=0"),
    *("run.checkpoint_every_steps=1", "averaging.every=step", "averaging.decay=0.9"),
):
    SMALL += ["--set", setting]  # 3 epochs of 3 steps


def test_the_next_work_waits_for_the_one_before() -> None:
    done: List[int] = []
    may_end, aside = threading.Event(), Aside()
    aside.start(lambda: (may_end.wait(LONG_SECONDS), done.append(1)))
    aside.check()
    assert done == []
    threading.Timer(0.05, may_end.set).start()
    aside.start(lambda: done.append(2))
    assert done[:1] == [1]
    aside.wait()
    assert done == [1, 2]


@pytest.mark.parametrize("ask", [lambda aside: aside.wait(), lambda aside: aside.start(print)])
def test_an_error_is_raised_once_where_the_work_is_asked_for(ask: Callable[[Aside], None]) -> None:
    def fail() -> None:
        raise OSError(28, "no space")

    aside = Aside()
    aside.start(fail)
    with pytest.raises(OSError, match="no space"):
        ask(aside)
    aside.check()
    aside.wait()


def checkpoints(folder: Path) -> Dict[int, Dict[str, Any]]:
    found = [load_checkpoint(path) for path in sorted((folder / "checkpoints").glob("*.pt"))]
    return {saved["step"]: saved for saved in found}


def flat(value: Any, path: str = "") -> Dict[str, Any]:
    if isinstance(value, dict):
        return {name: leaf for key in value for name, leaf in flat(value[key], f"{path}.{key}").items()}
    return {path: value}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    assert train.main([*SMALL, "--output-dir", str(folder)]) == 0
    return folder


def test_training_goes_on_while_a_checkpoint_is_written_and_the_file_holds_what_was_then(
    tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is held up until the next weight update is done, which changes weights, averages and optimizer."""
    done = threading.Condition()
    steps: List[int] = [0]
    advance = RunOutput.advance

    def tell(self: RunOutput, step: int) -> None:
        advance(self, step)
        with done:
            steps.append(step)
            done.notify_all()

    def save_late(folder: Path, state: Any, step: int, *rest: Any) -> None:
        with done:
            assert step == 9 or done.wait_for(lambda: steps[-1] > step, LONG_SECONDS), "the training has waited"
        save_checkpoint(folder, state, step, *rest)

    monkeypatch.setattr(RunOutput, "advance", tell)
    monkeypatch.setattr(continuation, "save_checkpoint", save_late)
    assert train.main([*SMALL, "--output-dir", str(tmp_path / "late")]) == 0
    expected, found = checkpoints(straight), checkpoints(tmp_path / "late")
    assert list(found) == list(expected) == list(range(1, 10))
    for step, saved in found.items():
        for part in ("model", "optimizer", "average"):
            for name, value in flat(expected[step][part]).items():
                other = flat(saved[part])[name]
                same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
                assert same, f"step {step}, {part}{name}"


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_those_before_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def save_until_full(folder: Path, state: Any, step: int, *rest: Any) -> None:
        if step == 4:
            raise OSError(28, "no space left")
        save_checkpoint(folder, state, step, *rest)

    monkeypatch.setattr(continuation, "save_checkpoint", save_until_full)
    assert train.main([*SMALL, "--output-dir", str(tmp_path)]) == 74
    assert "no space left" in capsys.readouterr().err
    assert sorted(checkpoints(tmp_path)) == [1, 2, 3]
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 74) and 4 <= status["step"] <= 6


def test_the_last_checkpoint_that_cannot_be_written_is_no_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_at_last(folder: Path, state: Any, step: int, *rest: Any) -> None:
        if step == 9:
            raise OSError(28, "no space left")
        save_checkpoint(folder, state, step, *rest)

    monkeypatch.setattr(continuation, "save_checkpoint", fail_at_last)
    assert train.main([*SMALL, "--output-dir", str(tmp_path)]) == 74
    assert not (tmp_path / "summary.json").exists()
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


def test_a_stop_waits_until_its_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_ended = threading.Event()

    def save_slowly(folder: Path, state: Any, step: int, *rest: Any) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            is_ended.wait(0.3)  # whoever does not wait is done by then
            assert not is_ended.is_set()
        save_checkpoint(folder, state, step, *rest)

    monkeypatch.setattr(continuation, "save_checkpoint", save_slowly)
    code = train.main([*SMALL, "--output-dir", str(tmp_path)])
    is_ended.set()
    assert code == 75
    status = json.loads((tmp_path / "status.json").read_text())
    assert status["state"] == "preempted" and max(checkpoints(tmp_path)) == status["step"] >= 2
