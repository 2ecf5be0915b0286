"""Grids as real processes: what is missing is run, what is stopped goes on, failures and changes are told."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

import reproduce
from configs.exit_codes import exit_code_of_signal

ROOT = Path(__file__).resolve().parent.parent.parent
HEAD = """title: does the runner work?
experiment: generated_smoke
set: [data.num_train_images=128, data.num_eval_images=50, schedule.epochs=1, device.name=cpu]
"""
# So many steps that it still trains when a test stops it, on any machine; a record every step tells that it trains.
ENDLESS = HEAD.replace("epochs=1", "epochs=1000000, run.log_every_steps=1, schedule.name=constant")
START_SECONDS = 600


def write_grid(folder: Path, text: str) -> str:
    path = folder / "tiny.yaml"
    path.write_text(text)
    return str(path)


def arguments(folder: Path, grid: str) -> List[str]:
    return [grid, "--jobs", "2", "--out", str(folder / "runs"), "--results", str(folder / "results")]


def result(folder: Path, name: str) -> Dict[str, Any]:
    return json.loads((folder / "results" / f"{name}.json").read_text())


def start(folder: Path, grid: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "reproduce.py"), *arguments(folder, grid)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(happened: Any) -> None:
    end = time.monotonic() + START_SECONDS
    while not happened():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.1)


def trained_steps(run: Path) -> int:
    """By the newest whole record; 0 before the first."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1])["step"] if whole else 0


def trainers(folder: Path) -> List[int]:
    """Return the processes of train.py that train below `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # it ended
            continue
        if any(word.endswith(b"train.py") for word in words) and any(str(folder).encode() in word for word in words):
            found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Tuple[Path, str]:
    """Return a grid with a learning-rate check, run to its end; and its printed lines."""
    folder = tmp_path_factory.mktemp("finished")
    rates = "rates: {seed: 100, factors: [1, 0.001], rows: [gn]}\nfigures: [top1, loss]\n"
    text = f"{HEAD}seeds: 0-1\nrows:\n  gn: {{set: [norm.proxy=false]}}\n  gnpn: {{}}\n{rates}"
    process = start(folder, write_grid(folder, text))
    said = process.communicate(timeout=START_SECONDS)[0]
    assert process.returncode == 0, said
    return folder, said


def test_a_grid_leaves_one_result_for_each_row_and_seed(finished: Tuple[Path, str]) -> None:
    folder, _ = finished
    names = {str(path.relative_to(folder / "results")) for path in folder.rglob("results/**/*.json")}
    assert names == {
        *(f"{row}.seed{seed}.json" for row in ("gn", "gnpn") for seed in (0, 1)),
        "rates/gn.x1.json",
        "rates/gn.x0.001.json",
    }


def test_a_result_holds_what_the_run_was_and_what_came_out(finished: Tuple[Path, str]) -> None:
    folder, _ = finished
    found = result(folder, "gnpn.seed1")
    run = folder / "runs" / "gnpn.seed1"
    summary = json.loads((run / "summary.json").read_text())
    command = summary.pop("command")
    assert f"--output-dir {run}" in command and command.endswith(" --resume")
    assert found["summary"].pop("command") == command.replace(f" --output-dir {run}", "").replace(" --resume", "")
    assert found["summary"] == summary
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert found["evaluations"] == [record for record in records if record["split"] == "eval"]
    assert (found["grid"], found["row"], found["column"], found["seed"]) == ("tiny", "gnpn", None, 1)
    assert (found["config"]["run"]["seed"], found["config"]["norm"]["proxy"]) == (1, True)
    assert found["config"]["device"]["threads"] == 1
    assert result(folder, "gn.seed1")["config"]["norm"]["proxy"] is False


def test_the_checked_rate_is_used_and_recorded_and_unchecked_rows_keep_theirs(finished: Tuple[Path, str]) -> None:
    folder, _ = finished
    losses = {factor: result(folder, f"rates/gn.x{factor}")["train_loss"] for factor in ("1", "0.001")}
    best = min(losses, key=lambda factor: losses[factor])
    for seed in (0, 1):
        found = result(folder, f"gn.seed{seed}")
        assert found["config"]["optimizer"]["learning_rate"] == pytest.approx(0.1 * float(best))
        assert found["learning_rate"]["factor"] == float(best)
        assert found["learning_rate"]["training_losses"] == losses
        assert result(folder, f"gnpn.seed{seed}")["config"]["optimizer"]["learning_rate"] == 0.1


def test_without_a_terminal_each_run_is_one_line_checks_first_and_then_seed_by_seed(
    finished: Tuple[Path, str],
) -> None:
    lines = [line for line in finished[1].splitlines() if line.startswith("[")]
    order = [re.sub(r"\[\d/6\] ([^:]*):.*", r"\1", line) for line in lines]
    assert set(order[:2]) == {"gn rate x1 seed 100", "gn rate x0.001 seed 100"} or order[0] == "gnpn seed 0"
    seeds = [int(name[-1]) for name in order if "rate" not in name]
    assert len(seeds) == 4
    # two at a time: a run of seed 1 may end before the last of seed 0, never before both have begun
    assert seeds[0] == 0
    assert seeds[-1] == 1


def test_the_table_has_mean_deviation_and_number_of_seeds(finished: Tuple[Path, str]) -> None:
    folder, said = finished
    first, second = (result(folder, f"gn.seed{seed}")["summary"]["top1"] for seed in (0, 1))
    mean, deviation = (first + second) / 2, abs(first - second) / 2**0.5  # of two values
    row = next(line for line in said.splitlines() if line.startswith("| gn |"))
    assert f"| {mean:.4f} ± {deviation:.4f} |" in row
    assert row.endswith("| 2 |")


def test_checkpoints_of_finished_runs_are_dropped_and_metrics_stay(finished: Tuple[Path, str]) -> None:
    for run in (finished[0] / "runs").glob("gn*.seed*"):
        assert not (run / "checkpoints").exists()
        assert (run / "metrics.jsonl").exists()


def test_what_has_a_result_is_not_run_again(finished: Tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    assert reproduce.main(arguments(folder, str(folder / "tiny.yaml"))) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")} == before
    assert "6 runs, 6 of them done" in capsys.readouterr().out


def test_a_changed_configuration_is_refused_with_what_differs_and_run_again_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path, f"{HEAD}seeds: [0]\nrows: {{gnpn: {{}}, gn: {{set: [norm.proxy=false]}}}}\n")
    assert reproduce.main(arguments(tmp_path, grid)) == 0
    kept = (tmp_path / "results" / "gn.seed0.json").read_bytes()
    write_grid(tmp_path, Path(grid).read_text().replace("gnpn: {}", "gnpn: {set: [optimizer.weight_decay=0.25]}"))
    capsys.readouterr()
    assert reproduce.main(arguments(tmp_path, grid)) == 2
    message = capsys.readouterr().err
    assert "gnpn seed 0" in message
    assert "optimizer.weight_decay was 0.0005, is now 0.25" in message
    assert "--rerun" in message
    assert "gn seed 0" not in message
    assert result(tmp_path, "gnpn.seed0")["config"]["optimizer"]["weight_decay"] == 5e-4
    assert reproduce.main([*arguments(tmp_path, grid), "--rerun"]) == 0
    assert result(tmp_path, "gnpn.seed0")["config"]["optimizer"]["weight_decay"] == 0.25
    assert (tmp_path / "results" / "gn.seed0.json").read_bytes() == kept


def test_a_failed_row_is_told_at_the_end_and_the_others_are_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "rows: {bad: {set: [model.name=resnet50]}, good: {}}"  # its images are too small for that network
    grid = write_grid(tmp_path, f"{HEAD}seeds: 0-1\n{rows}\n")
    assert reproduce.main(arguments(tmp_path, grid)) == reproduce.FAILED
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"good.seed0.json", "good.seed1.json"}
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("failed: ")]
    assert [line.split(": ")[1] for line in told] == ["bad seed 0", "bad seed 1"]
    assert "exit code" in told[0]


def test_a_run_that_diverges_is_a_result_without_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = HEAD.replace("epochs=1", "epochs=1, schedule.warmup_epochs=0")
    row = "rows: {wild: {set: [optimizer.learning_rate=1e30, norm.name=none, norm.proxy=false, norm.num_groups=null]}}"
    grid = write_grid(tmp_path, f"{text}seeds: [0]\n{row}\n")
    assert reproduce.main(arguments(tmp_path, grid)) == 0
    assert result(tmp_path, "wild.seed0")["summary"] is None
    assert "0, 1 diverged" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_grid_saves_its_runs_and_the_same_command_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    grid = write_grid(tmp_path, f"{ENDLESS}seeds: [0]\nrows: {{gn: {{set: [norm.proxy=false]}}, gnpn: {{}}}}\n")
    runs = [tmp_path / "runs" / f"{row}.seed0" for row in ("gn", "gnpn")]
    process = start(tmp_path, grid)
    wait_for(lambda: all(trained_steps(run) > 2 for run in runs))
    process.send_signal(number)
    said = process.communicate(timeout=START_SECONDS)[0]
    assert process.returncode == exit_code_of_signal(number), said
    assert not trainers(tmp_path)
    saved = [json.loads((run / "status.json").read_text()) for run in runs]
    assert [(status["state"], status["exit_code"]) for status in saved] == [("preempted", 75)] * 2
    process = start(tmp_path, grid)
    wait_for(lambda: all(trained_steps(run) > status["step"] + 2 for run, status in zip(runs, saved)))
    process.send_signal(number)
    process.communicate(timeout=START_SECONDS)
    for run, status in zip(runs, saved):
        assert f"resuming from {run}/checkpoints/step_{status['step']:08d}.pt" in (run / "console.log").read_text()
        steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert sorted(set(steps)) == list(range(1, max(steps) + 1))  # none is missing


def test_runs_of_a_killed_runner_save_and_end_and_the_next_runner_waits_for_them(tmp_path: Path) -> None:
    grid = write_grid(tmp_path, f"{ENDLESS}seeds: 0-1\nrows: {{gnpn: {{}}}}\n")
    runs = [tmp_path / "runs" / f"gnpn.seed{seed}" for seed in (0, 1)]
    first = start(tmp_path, grid)
    wait_for(lambda: all(trained_steps(run) > 2 for run in runs))
    children = trainers(tmp_path)
    assert len(children) == 2
    os.kill(children[0], signal.SIGSTOP)  # as on a disk that hangs: it cannot save yet
    first.kill()
    first.wait()
    wait_for(lambda: trainers(tmp_path) == [children[0]])
    second = start(tmp_path, grid)
    assert second.stdout is not None
    said = [second.stdout.readline() for _ in range(2)]
    assert f"waiting for runs of the runner with pid {first.pid}" in said[1]
    assert trainers(tmp_path) == [children[0]]
    os.kill(children[0], signal.SIGCONT)
    wait_for(lambda: all("resuming from" in (run / "console.log").read_text() for run in runs))
    assert children[0] not in trainers(tmp_path)
    second.terminate()
    second.communicate(timeout=START_SECONDS)


def test_two_runners_do_not_share_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path, f"{ENDLESS}seeds: [0]\nrows: {{gnpn: {{}}}}\n")
    process = start(tmp_path, grid)
    wait_for(lambda: trained_steps(tmp_path / "runs" / "gnpn.seed0") > 0)
    assert reproduce.main(arguments(tmp_path, grid)) == 2
    assert f"in use by the runner with pid {process.pid}" in capsys.readouterr().err
    process.terminate()
    process.communicate(timeout=START_SECONDS)


def test_an_override_needs_a_name_for_what_it_makes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = write_grid(tmp_path, f"{HEAD}seeds: [0]\nrows: {{gnpn: {{}}}}\n")
    assert reproduce.main([grid, "--set", "data.name=cifar10"]) == 2
    assert "--name" in capsys.readouterr().err


def test_an_override_of_the_command_line_is_filed_under_its_own_name(tmp_path: Path) -> None:
    grid = write_grid(tmp_path, f"{HEAD}seeds: [0]\nrows: {{gnpn: {{}}}}\n")
    others = ["--set", "optimizer.weight_decay=0.0", "--name", "undecayed"]
    assert reproduce.main([*arguments(tmp_path, grid), *others]) == 0
    found = result(tmp_path, "gnpn.seed0")
    assert found["grid"] == "undecayed"
    assert found["config"]["optimizer"]["weight_decay"] == 0.0


def test_the_list_says_where_each_run_stands_and_runs_nothing(
    finished: Tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = arguments(finished[0], str(finished[0] / "tiny.yaml"))
    assert reproduce.main([*done, "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["done"] * 6
    assert reproduce.main([*arguments(tmp_path, done[0]), "--list"]) == 0
    states = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert states == ["missing"] * 2 + ["waits", "missing"] * 2  # gn waits for its rate, gnpn has none to wait for
    assert not list(tmp_path.iterdir())
