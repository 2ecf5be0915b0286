"""What a run must survive, with real processes: it ends with a reason, or goes on to the same bits."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List

import pytest
from real_runs import (
    PYTHON,
    ROOT,
    TWO_PROCESSES,
    assert_equal_weights,
    assert_same_result,
    children,
    final,
    is_alive,
    newest_step,
    process_of,
    records,
    rows,
    run,
    status,
    wait_until,
)
from real_runs import start as start_run

LONG = ["--set", "schedule.epochs=400", "--set", "run.checkpoint_every_steps=1000", "--set", "data.num_eval_images=10"]


STARTED: List["subprocess.Popen[str]"] = []


def start(folder: Path, *arguments: str, launcher: List[str]) -> "subprocess.Popen[str]":
    STARTED.append(start_run(folder, *arguments, launcher=launcher))
    return STARTED[-1]


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.terminate()  # torchrun then ends its own
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def kill_children(process: "subprocess.Popen[str]") -> bool:
    """Whether it has ended; each call kills what it started. One that has loaded all of its images ends nothing."""
    for child in children(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return process.poll() is not None


# ---- signals ----

# An evaluation of thousands of batches after four weight updates.
EVALUATING = ["--set", "schedule.epochs=1", "--set", "data.num_eval_images=4001", "--set", "batch.micro_batch_size=1"]
EVALUATING += ["--set", "averaging.every=epoch", "--set", "averaging.decay=0.9"]


@pytest.mark.parametrize("launcher", [PYTHON, pytest.param(TWO_PROCESSES, marks=pytest.mark.slow)])
def test_a_signal_during_evaluation_saves_at_once_and_evaluation_begins_anew(
    tmp_path: Path, launcher: List[str]
) -> None:
    """With two processes the signal goes to one of them, which has one batch more than the other or one less."""
    folder, straight = tmp_path / "stopped", tmp_path / "straight"
    process = start(folder, *EVALUATING, launcher=launcher)
    wait_until(lambda: records(folder, "train"))
    time.sleep(0.2)  # into the evaluation
    target = process.pid if launcher is PYTHON else children(process.pid)[-1]
    os.kill(target, signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 75 or launcher is TWO_PROCESSES, output
    assert (status(folder)["state"], status(folder)["exit_code"], status(folder)["step"]) == ("preempted", 75, 4)
    assert records(folder, "eval") == 0
    stopped = final(folder, 4)
    assert stopped["average"]["updates"] == 1  # the epoch's weights are in: resuming must not take them in twice
    for target_folder, arguments in ((folder, ["--resume"]), (straight, [])):
        output, _ = start(target_folder, *EVALUATING, *arguments, launcher=launcher).communicate(timeout=600)
        assert status(target_folder)["state"] == "done", output
    assert rows(folder) == rows(straight)
    assert_equal_weights(final(folder, 4), final(straight, 4))


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    process = start(tmp_path / "run", *LONG, launcher=PYTHON)
    wait_until(lambda: records(tmp_path / "run", "eval"))
    process.send_signal(signal.SIGSTOP)  # so that both arrive before the next weight update ends
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert status(tmp_path / "run")["state"] == "running"


def test_a_signal_to_the_whole_group_of_processes_counts_as_one_to_the_run(tmp_path: Path) -> None:
    """Batch systems signal the processes that load images too, and these end."""
    folder = tmp_path / "run"
    process = start(folder, *LONG, "--set", "data.workers=2", launcher=["setsid", *PYTHON])
    wait_until(lambda: records(folder, "eval") and len(children(process.pid)) >= 2)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 75, output
    assert status(folder)["state"] == "preempted"
    assert (folder / "checkpoints" / f"step_{status(folder)['step']:08d}.pt").exists()


def test_a_stopped_and_continued_process_and_a_clock_that_jumps_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    day, before = 86400.0, time.time
    monkeypatch.setattr(time, "time", lambda: before() - day * random.random())
    assert run(straight) == 0
    monkeypatch.undo()
    process = start(stopped, launcher=PYTHON)
    wait_until((stopped / "checkpoints").exists)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1)
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert_same_result(straight, stopped)
    for folder in (straight, stopped):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert all(line["images_per_second"] > 0 for line in lines)
        assert 0 < json.loads((folder / "summary.json").read_text())["seconds"] < day / 2


# ---- processes that die ----


def test_a_loading_process_that_is_killed_ends_the_run_saved_and_with_the_reason(tmp_path: Path) -> None:
    folder, straight = tmp_path / "run", tmp_path / "straight"
    settings = [*LONG, "--set", "schedule.epochs=40"]
    process = start(folder, *settings, "--set", "data.workers=1", launcher=PYTHON)
    wait_until(lambda: records(folder, "eval") >= 2)
    wait_until(lambda: kill_children(process))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 3, output
    assert "ended by the signal Killed: the system may have been out of memory" in output
    assert "images cannot be loaded: saved at step" in output and "Traceback" not in output
    assert status(folder)["state"] == "failed" and "Killed" in status(folder)["reason"]
    step = status(folder)["step"]
    assert 8 <= step < 160
    assert run(straight, *settings, "--set", f"run.checkpoint_every_steps={step}") == 0
    assert_equal_weights(final(folder, step), final(straight, step))


def test_loading_processes_end_when_the_run_is_killed(tmp_path: Path) -> None:
    process = start(tmp_path / "run", *LONG, "--set", "data.workers=2", launcher=PYTHON)
    wait_until(lambda: records(tmp_path / "run", "eval"))
    workers = wait_until(lambda: children(process.pid))
    process.kill()
    process.communicate()
    wait_until(lambda: not any(is_alive(worker) for worker in workers))


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_is_told_of_by_the_others(tmp_path: Path, rank: int) -> None:
    """Process 0, which writes the run folder, cannot say how it ended."""
    folder = tmp_path / "run"
    process = start(folder, *LONG, launcher=TWO_PROCESSES)
    wait_until(lambda: records(folder, "train") >= 2)
    os.kill(process_of(process.pid, rank), signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    assert 'train.py", line' not in output  # torchrun adds a traceback of its own, and may end the others early
    assert (status(folder)["state"], status(folder)["exit_code"]) == ("failed", 76)
    assert status(folder)["reason"].startswith("another process of the run ended or cannot be reached: ")
    assert status(folder)["step"] > 0


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_torchrun_starts_killed_processes_again_and_the_bits_are_the_same(tmp_path: Path, rank: int) -> None:
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    settings = ["--resume", "--set", "schedule.epochs=30", "--set", "run.checkpoint_every_steps=3"]
    process = start(killed, *settings, launcher=[*TWO_PROCESSES, "--max-restarts", "1"])
    wait_until(lambda: newest_step(killed) >= 6)
    os.kill(process_of(process.pid, rank), signal.SIGKILL)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    assert "exitcode: -9" in output.replace("exitcode  :", "exitcode:") and status(killed)["state"] == "done"
    output, _ = start(straight, *settings, launcher=TWO_PROCESSES).communicate(timeout=900)
    assert rows(killed) == rows(straight), output
    assert_equal_weights(final(killed, 120), final(straight, 120))


@pytest.mark.parametrize(
    ("first", "then"),
    [(TWO_PROCESSES, PYTHON), pytest.param(PYTHON, TWO_PROCESSES, marks=pytest.mark.slow)],
    ids=["two, then one", "one, then two"],
)
def test_a_killed_run_goes_on_with_another_number_of_processes(
    tmp_path: Path, first: List[str], then: List[str]
) -> None:
    folder, straight = tmp_path / "killed", tmp_path / "straight"
    settings = ["--set", "schedule.epochs=10"]
    process = start(folder, *settings, launcher=first)
    wait_until(lambda: newest_step(folder) >= 6)
    for killed in children(process.pid) or [process.pid]:  # the launcher then ends by itself
        os.kill(killed, signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0, output
    output, _ = start(folder, *settings, "--resume", launcher=then).communicate(timeout=600)
    assert status(folder)["state"] == "done", output
    before = 2 if first is TWO_PROCESSES else 1
    assert (
        f"exactness not guaranteed because replicas was {before}, is now {3 - before}; micro_batch_size was" in output
    )
    assert run(straight, *settings) == 0
    assert [row["step"] for row in rows(folder)] == [row["step"] for row in rows(straight)]
    # Each sum is cut elsewhere, and what that rounds grows: by 4e-4 of the loss after 16 updates, where one process
    # merely splits its batch in two; after 24 by 1e-3, and no longer.
    for left, right in zip(rows(folder)[:8], rows(straight)[:8]):
        assert left["loss"] == pytest.approx(right["loss"], rel=2e-3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_that_is_killed_twenty_times_at_random_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    command = [*PYTHON, "tests/kills.py", "--count", "20", "--folder", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"^20 kills of [12] whole runs, 0 of them with another result$", ended.stdout, re.MULTILINE)


# ---- a machine with little of something ----


def limited(kind: int, value: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (value, value))


def run_with(folder: Path, limit: Callable[[], None], *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [*PYTHON, "train.py", "--config", "generated_smoke", "--device", "cpu", "--output-dir", str(folder)]
    command += ["--set", "schedule.epochs=1", *arguments]
    return subprocess.run(command, cwd=ROOT, text=True, capture_output=True, preexec_fn=limit, timeout=600, check=False)


def test_sixty_four_open_files_are_enough(tmp_path: Path) -> None:
    done = run_with(tmp_path / "run", limited(resource.RLIMIT_NOFILE, 64), "--set", "data.workers=2")
    assert done.returncode == 0, done.stderr
    assert status(tmp_path / "run")["state"] == "done"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_long_run_keeps_its_memory_and_its_open_files(tmp_path: Path) -> None:
    """500 epochs: what is in use after a fifth of them is in use at the end."""
    folder = tmp_path / "run"
    few = ["--set", "data.num_train_images=64", "--set", "data.num_eval_images=10", "--set", "schedule.epochs=500"]
    few += ["--set", "run.checkpoint_every_steps=1000", "--set", "run.keep_checkpoints=2"]
    process = start(folder, *few, launcher=PYTHON)
    seen: List[Dict[str, int]] = []
    for epochs in (100, 480):
        wait_until(lambda epochs=epochs: records(folder, "eval") >= epochs, seconds=600)
        text = Path(f"/proc/{process.pid}/status").read_text()
        kib = int(text.partition("VmRSS:")[2].split()[0])
        seen.append({"kib": kib, "files": len(list(Path(f"/proc/{process.pid}/fd").iterdir()))})
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert seen[1]["files"] <= seen[0]["files"] + 1  # one may be open for a moment
    assert seen[1]["kib"] < seen[0]["kib"] + 20_000  # 380 epochs: a leak of one batch of images each would be 18 MB
