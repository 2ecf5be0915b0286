"""Sums and means, the metrics file, and the summary and status files."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiment import metrics_log
from experiment.metrics_log import MetricsLog, write_status, write_summary
from training.metrics import Means, StepSums
from training.nonfinite import NonFiniteLossError
from training.weights import CheckpointError

MEANS = Means(loss=1.5, top1=0.25, top5=0.75)


def rows(path: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_steps(log: MetricsLog, *steps: int) -> None:
    for step in steps:
        log.append(split="train", step=step, epoch=step / 4, means=MEANS, images_per_second=9.0, learning_rate=0.1)


def test_means_divide_the_total_once() -> None:
    total = StepSums(6.0, 1, 3, 4) + StepSums(1.0, 1, 1, 1)
    assert total.means() == Means(loss=7 / 5, top1=2 / 5, top5=4 / 5)


def test_means_of_no_images_are_an_error() -> None:
    with pytest.raises(ValueError, match="no image was counted"):
        StepSums().means()


def test_sums_from_a_step_add_up_replicas_and_hold_no_graph() -> None:
    loss = torch.tensor([1.5, 2.5], requires_grad=True) * 1
    sums = StepSums.from_step((loss, torch.tensor([1, 0]), torch.tensor([2, 1]), torch.tensor([3, 3])))
    assert isinstance(sums.loss_sum, torch.Tensor) and not sums.loss_sum.requires_grad
    assert sums.means() == Means(loss=4 / 6, top1=1 / 6, top5=3 / 6)


def test_a_long_sum_of_float32_losses_keeps_its_digits() -> None:
    step = (torch.tensor(0.1), torch.tensor(0), torch.tensor(0), torch.tensor(1))
    total = StepSums(loss_sum=2.0**24)  # float32 could not add 0.1 to this at all
    for _ in range(10):
        total = total + StepSums.from_step(step)
    assert float(total.loss_sum) == pytest.approx(2.0**24 + 1.0, abs=1e-6)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(loss=st.floats(allow_nan=False, allow_infinity=False), counts=st.tuples(*[st.integers(0, 2**53)] * 3))
def test_stacked_sums_come_back_to_the_bit(loss: float, counts: Any) -> None:
    sums = StepSums(loss, *counts)
    assert StepSums.from_stacked(sums.stacked()) == sums


def test_each_record_is_one_line_that_is_on_disk_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    record = log.append(split="train", step=4, epoch=0.5, means=MEANS, images_per_second=800.0, learning_rate=0.1)
    assert rows(log.path) == [record]
    log.append(split="eval", step=8, epoch=1.0, means=MEANS, images_per_second=900.0)
    common = {"loss": 1.5, "top1": 0.25, "top5": 0.75}
    assert rows(log.path) == [
        {"split": "train", "step": 4, "epoch": 0.5, **common, "learning_rate": 0.1, "images_per_second": 800.0},
        {"split": "eval", "step": 8, "epoch": 1.0, **common, "images_per_second": 900.0},
    ]


def test_values_that_are_not_finite_are_written_as_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(split="eval", step=1, epoch=1, means=Means(math.nan, 0.0, 0.5), images_per_second=math.inf)
    assert "NaN" not in log.path.read_text() and "Infinity" not in log.path.read_text()
    record = rows(log.path)[0]
    assert (record["loss"], record["top1"], record["images_per_second"]) == (None, 0.0, None)


@pytest.mark.parametrize("split, learning_rate", [("test", None), ("train", None), ("eval", 0.1)])
def test_records_of_another_form_are_refused(tmp_path: Path, split: str, learning_rate: Any) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="train"):
        log.append(split=split, step=1, epoch=1, means=MEANS, images_per_second=1.0, learning_rate=learning_rate)
    assert not log.path.exists()


def test_resuming_drops_later_rows_and_keeps_those_of_the_step(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    write_steps(log, 1, 2, 3)
    log.append(split="eval", step=3, epoch=1, means=MEANS, images_per_second=1.0)
    write_steps(log, 4, 5)
    kept = log.path.read_bytes().splitlines(keepends=True)[:4]
    assert log.truncate_after(3, evaluated_step=3) == 2
    assert log.path.read_bytes() == b"".join(kept)
    write_steps(log, 4)
    assert [row["step"] for row in rows(log.path)] == [1, 2, 3, 3, 4]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_an_evaluation_that_the_resumed_state_does_not_know_is_dropped_to_be_done_again(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    write_steps(log, 1, 2)
    log.append(split="eval", step=2, epoch=1, means=MEANS, images_per_second=1.0)
    assert log.truncate_after(2, evaluated_step=0) == 1
    assert [row["split"] for row in rows(log.path)] == ["train", "train"]


def test_a_run_killed_at_any_byte_of_a_record_resumes_with_whole_rows(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    write_steps(log, 1, 2)
    whole = log.path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole) + 1):
        log.path.write_bytes(whole[:size])
        log.truncate_after(2, evaluated_step=0)
        # Cut just before its newline a record is complete all the same.
        assert log.path.read_bytes() == (whole if size >= len(whole) - 1 else whole[:first])


def test_a_broken_line_in_the_middle_is_an_error_and_the_file_stays(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    write_steps(log, 1)
    log.path.write_bytes(log.path.read_bytes() + b"oops\n" + log.path.read_bytes())
    before = log.path.read_bytes()
    with pytest.raises(CheckpointError, match="line 2 is not a metrics record: b'oops'"):
        log.truncate_after(1, evaluated_step=0)
    assert log.path.read_bytes() == before


def test_zeros_that_a_loss_of_power_left_are_dropped_wherever_they_are(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    write_steps(log, 1)
    first = log.path.read_bytes()
    log.path.write_bytes(first + b"\0" * 4096 + b"\n" + first + b"\0" * 100)
    assert log.truncate_after(1, evaluated_step=0) == 2
    assert log.path.read_bytes() == first + first


def test_each_record_is_synced_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, synced = MetricsLog(tmp_path / "metrics.jsonl"), []
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append((os.readlink(f"/proc/self/fd/{number}"), rows(log.path)))
    )
    write_steps(log, 1, 2)
    assert [(path, len(seen)) for path, seen in synced] == [(str(log.path), 1), (str(log.path), 2)]


def test_a_full_disk_does_not_keep_the_end_of_a_run_out_of_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status.json"
    write_status(path, "running", "from step 0", None, 0)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(metrics_log, "replace_file", full)
    write_status(path, "failed", "disk full", 74, 12)
    assert json.loads(path.read_text()) == {"state": "failed", "reason": "disk full", "exit_code": 74, "step": 12}
    with pytest.raises(OSError, match="no space left"):
        write_status(path, "running", "from step 12", None, 12)


def test_resuming_without_a_metrics_file_drops_nothing(tmp_path: Path) -> None:
    assert MetricsLog(tmp_path / "metrics.jsonl").truncate_after(3, evaluated_step=3) == 0


def test_summary_and_status_are_replaced_whole(tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", {"top1": 0.5, "loss": math.nan, "curve": [1.0, math.inf]})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"top1": 0.5, "loss": None, "curve": [1.0, None]}
    write_status(tmp_path / "status.json", "running", "started", None, 0)
    write_status(tmp_path / "status.json", "preempted", "SIGTERM", 75, 12)
    assert json.loads((tmp_path / "status.json").read_text()) == {
        "state": "preempted",
        "reason": "SIGTERM",
        "exit_code": 75,
        "step": 12,
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["status.json", "summary.json"]


def test_non_finite_error_tells_step_rate_and_loss() -> None:
    error = NonFiniteLossError(step=7, learning_rate=0.5, loss=math.nan)
    assert (error.step, error.learning_rate) == (7, 0.5) and math.isnan(error.loss)
    assert "at step 7: loss nan, learning rate 0.5" in str(error)
