"""What looks at a run is called after each epoch and at the end, and a picture that fails costs a warning."""

import logging
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest

import train
from experiment.observers import Observers
from experiment.power_log import PowerLog
from experiment.run_folder import RunFolder
from experiment.run_output import RunOutput


class Noted:
    """An observer that notes its calls."""

    def __init__(self, calls: List[Tuple[Any, ...]], failure: Optional[Exception] = None) -> None:
        self.calls, self.failure = calls, failure

    def resume(self, step: int, evaluated_step: int) -> List[Dict[str, Any]]:
        self.calls.append(("resume", step, evaluated_step))
        return [{"split": "noted", "step": step, "epoch": 0, "value": 1.0}]

    def after_epoch(self, epoch: int) -> None:
        self.calls.append(("after", epoch))

    def at_end(self, title: str) -> None:
        self.calls.append(("end", title))
        if self.failure is not None:
            raise self.failure


def test_a_run_calls_its_observers_before_the_first_step_after_each_epoch_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: List[Tuple[Any, ...]] = []
    monkeypatch.setattr(train, "PowerLog", lambda run, output: Noted(calls))
    command = ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(tmp_path / "run")]
    words = ["data.num_train_images=64", "data.num_eval_images=20", "batch.global_batch_size=32", "schedule.epochs=2"]
    assert train.main([*command, *(part for word in [*words, "run.csv=true"] for part in ("--set", word))]) == 0
    assert calls[:4] == [("resume", 0, 0), ("after", 0), ("after", 1), ("after", 2)]
    assert [call[0] for call in calls[4:]] == ["end"]
    assert calls[4][1].startswith("generated_smoke: ")
    assert (
        "noted" in (tmp_path / "run" / "metrics.csv").read_text()
    )  # what an observer knows of before goes to trackers


def observers(
    folder: Path, calls: List[Tuple[Any, ...]], is_primary: bool, failure: Optional[Exception] = None
) -> Observers:
    output = RunOutput(RunFolder(folder), is_primary=False, resume=False)
    (folder / "config.yaml").write_text("run: {seed: 0}\n")
    return Observers([Noted(calls, failure), Noted(calls)], "name", output, is_primary)  # type: ignore[list-item]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), ValueError("a font"), KeyError("epoch")])
def test_a_picture_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    calls: List[Tuple[Any, ...]] = []
    with caplog.at_level(logging.WARNING):
        observers(tmp_path, calls, is_primary=True, failure=failure).at_end()
    assert [call[0] for call in calls] == ["end"]
    assert f"the pictures cannot be written: {failure}; draw them with" in caplog.text


def test_other_processes_than_the_primary_draw_nothing(tmp_path: Path) -> None:
    calls: List[Tuple[Any, ...]] = []
    observers(tmp_path, calls, is_primary=False).at_end()
    assert calls == []


def test_only_the_primary_process_reads_and_cuts_the_power_log(tmp_path: Path) -> None:
    class Elsewhere:
        class device:  # noqa: N801  of a run, this alone
            is_primary = False

    (tmp_path / "power.jsonl").write_text("half of a rec")
    log = PowerLog(Elsewhere(), RunOutput(RunFolder(tmp_path), is_primary=False, resume=False))
    assert log.resume(4, 4) == []
    assert (tmp_path / "power.jsonl").read_text() == "half of a rec"
