"""Whole runs through the command line: what is written, exact continuation, several processes, errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest
import torch
from real_runs import PYTHON, ROOT, SMALL, TWO_PROCESSES, assert_same_result, final, rows, run, start

import evaluate
import train
from experiment.checkpoint import load_checkpoint
from experiment.continuation import check_same_step
from training.weights import CheckpointError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uninterrupted run with all its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder) == 0
    return folder


def test_a_run_leaves_every_promised_file(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "status.json",
        "checkpoints",
        "curves.png",
    }
    summary = json.loads((whole / "summary.json").read_text())
    wanted = {"top1", "best_top1", "steps", "seconds", "images_per_second", "device", "parameters"}
    assert summary.keys() >= wanted
    assert (summary["steps"], summary["device"]) == (8, "cpu")
    assert summary["norm"] == {
        **{"name": "group", "proxy": True, "num_groups": 4, "grouping": "contiguous", "eps": 1e-5, "proxy_eps": 0.03},
        **{"proxy_method": "exact", "learn_proxy": True, "kernel": "auto", "recompute": False},
    }
    assert (summary["experiment"], summary["seed"], summary["epochs"]) == ("generated_smoke", 0, 2)
    assert summary["global_batch_size"] == 64 and summary["train"]["images"] == 256
    assert summary["versions"]["torch"] == str(torch.__version__)
    assert summary["command"].startswith("python train.py --config generated_smoke --device cpu --set ")
    assert summary["threads"] == torch.get_num_threads() and "cores" in summary["machine"]
    assert "test_reestimated" not in summary  # no batch norm
    assert json.loads((whole / "status.json").read_text()) == {
        "state": "done",
        "reason": "all 8 steps",
        "exit_code": 0,
        "step": 8,
    }
    names = [path.name for path in sorted((whole / "checkpoints").glob("*.pt"))]
    assert names == [f"step_{step:08d}.pt" for step in (3, 4, 6, 8)]
    assert (whole / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_records_have_the_documented_fields_and_evaluation_counts_every_image(whole: Path) -> None:
    records = rows(whole)
    assert [(record["split"], record["step"]) for record in records] == [
        ("train", 4),
        ("eval", 4),
        ("train", 8),
        ("eval", 8),
    ]
    assert records[0].keys() == {"split", "step", "epoch", "loss", "top1", "top5", "learning_rate"}
    assert records[1].keys() == {"split", "step", "epoch", "loss", "top1", "top5"}
    for record in records:
        images = 101 if record["split"] == "eval" else 256
        assert record["top1"] * images == pytest.approx(round(record["top1"] * images), abs=1e-9)


def test_the_written_config_gives_the_same_run_again(whole: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    assert train.main(["--config", str(whole / "config.yaml"), "--output-dir", str(again)]) == 0
    assert_same_result(whole, again)


@pytest.mark.parametrize("step", [3, 4, 6])
@pytest.mark.parametrize("workers", [0, 1])
def test_resuming_from_any_checkpoint_is_bit_identical(whole: Path, tmp_path: Path, step: int, workers: int) -> None:
    folder = copy_up_to(whole, tmp_path / "resumed", step)
    assert run(folder, "--resume", "--set", f"data.workers={workers}") == 0
    assert_same_result(whole, folder)


def copy_up_to(source: Path, target: Path, step: int) -> Path:
    """Return what a process that was killed after `step`'s checkpoint and some more steps left."""
    (target / "checkpoints").mkdir(parents=True)
    for path in (source / "checkpoints").iterdir():
        if int(path.stem.split("_")[1]) <= step:
            (target / "checkpoints" / path.name).write_bytes(path.read_bytes())
    text = (source / "metrics.jsonl").read_text()
    (target / "metrics.jsonl").write_text(text + '{"split": "train", "st')  # later records, and a torn one
    return target


def test_resuming_a_finished_run_has_nothing_to_do(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    assert run(whole, "--resume") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_a_second_run_in_the_folder_is_refused_without_resume(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(whole) == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("optimizer.learning_rate=0.2", "optimizer.learning_rate was 0.1, is now 0.2"),
        ("norm.grouping=strided", "'contiguous' in the checkpoint, 'strided' here"),
        ("run.seed=5", "run.seed was 0, is now 5"),
    ],
)
def test_resuming_with_another_experiment_is_refused(
    whole: Path, tmp_path: Path, change: str, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_up_to(whole, tmp_path / "other", 4)
    assert run(folder, "--resume", "--set", change) == 4
    assert part in capsys.readouterr().err


def test_resuming_with_another_number_of_threads_says_that_it_is_not_exact(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_up_to(whole, tmp_path / "threads", 6)
    threads = torch.get_num_threads()
    try:
        assert run(folder, "--resume", "--set", f"device.threads={threads + 1}") == 0
    finally:
        torch.set_num_threads(threads)
    assert f"exactness not guaranteed because threads was {threads}, is now {threads + 1}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change", ["batch.micro_batch_size=16", "device.precision=bfloat16", "device.channels_last=true"]
)
def test_resuming_with_another_execution_says_that_it_is_not_exact(
    whole: Path, tmp_path: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_up_to(whole, tmp_path / "changed", 6)
    assert run(folder, "--resume", "--set", change) == 0
    name = change.partition("=")[0].partition(".")[2]
    assert f"exactness not guaranteed because {name} was" in capsys.readouterr().out


def test_recomputing_activations_changes_no_bit_so_that_a_run_may_continue_with_it(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_up_to(whole, tmp_path / "recomputed", 3)
    assert run(folder, "--resume", "--set", "norm.recompute=true") == 0
    assert_same_result(whole, folder)
    assert "exactness not guaranteed" not in capsys.readouterr().out


def test_a_run_continues_when_the_weights_that_it_started_from_are_gone(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_from = tmp_path / "start.pt"
    start_from.write_bytes((whole / "checkpoints" / "step_00000003.pt").read_bytes())
    arguments = ["--set", f"model.pretrained={start_from}"]
    straight = tmp_path / "straight"
    assert run(straight, *arguments) == 0
    start_from.unlink()
    resumed = copy_up_to(straight, tmp_path / "resumed", 6)
    assert run(resumed, *arguments, "--resume") == 0
    assert_same_result(straight, resumed)
    assert run(tmp_path / "anew", *arguments, "--resume") == 4  # without a checkpoint it needs them
    assert f"{start_from} cannot be read" in capsys.readouterr().err


def test_a_run_killed_before_its_report_reports_when_it_is_resumed(whole: Path, tmp_path: Path) -> None:
    folder = copy_up_to(whole, tmp_path / "unreported", 8)
    assert run(folder, "--resume") == 0
    assert json.loads((folder / "summary.json").read_text())["steps"] == 8
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert (folder / "curves.png").exists()
    assert rows(folder) == rows(whole)


def test_a_run_that_holds_only_a_checkpoint_is_not_overwritten_without_resume(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_up_to(whole, tmp_path / "early", 3)
    (folder / "metrics.jsonl").unlink()
    assert run(folder) == 2
    assert "--resume" in capsys.readouterr().err
    assert (folder / "checkpoints" / "step_00000003.pt").exists()


def test_processes_that_find_different_checkpoints_are_told_so() -> None:
    class TwoProcesses:
        """Pretend that this process is at step 6, and the other at step 4."""

        def agree(self, flag: int) -> int:
            return max(flag, 4 if flag > 0 else -4)

    with pytest.raises(CheckpointError, match="from step 4 to step 6"):
        check_same_step(TwoProcesses(), 6, Path("runs/x"))
    check_same_step(TwoProcesses(), 4, Path("runs/x"))


def test_the_output_folder_is_taken_as_it_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "a #1: null"
    assert run(folder, "--set", "schedule.epochs=1") == 0
    assert (folder / "summary.json").exists()


def test_the_status_tells_of_a_failure_before_the_first_step(tmp_path: Path) -> None:
    assert run(tmp_path / "early", "--set", "model.name=resnet21") == 2
    status = json.loads((tmp_path / "early" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 2)
    assert "resnet21" in status["reason"]


@pytest.mark.parametrize("command", ["train", "evaluate", "export", "analyze", "reproduce"])
def test_a_command_starts_without_what_only_some_runs_need(command: str) -> None:
    """--help and a typing error are answered in the time in which torch is imported, and little more."""
    names = {"matplotlib", "torchvision", "tensorboard", "wandb", "fsspec", "scipy", "sklearn", "pandas", "onnx"}
    names |= {"onnxruntime", "timm", "jinja2", "tqdm.notebook", "sympy", "torch._dynamo"}
    program = f"import sys, {command}; print({names} & set(sys.modules))"
    done = subprocess.run([*PYTHON, "-c", program], capture_output=True, text=True, timeout=600, cwd=ROOT, check=True)
    assert done.stdout == "set()\n"


def test_processes_with_different_images_end_with_code_3(tmp_path: Path) -> None:
    """One machine's copy of the data set has an image more than the other's."""
    arguments = [*SMALL, "--output-dir", str(tmp_path / "run"), "--set"]
    program = f"{sys.executable} train.py {' '.join(arguments)} data.num_train_images=$((64 + RANK)); echo code $?"
    command = [*TWO_PROCESSES, "--no-python", "sh", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, check=False)
    assert done.stdout.count("code 3") == 2, done.stdout + done.stderr
    assert done.stderr.count("the processes read different images") == 2


@pytest.mark.parametrize("point", ["mid_write", "before_manifest"])
def test_a_run_killed_while_writing_a_checkpoint_continues_bit_identically(
    whole: Path, tmp_path: Path, point: str
) -> None:
    folder = tmp_path / "killed"
    process = start(folder, launcher=PYTHON, PROXYNORM_CRASH_AT=point)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert run(folder, "--resume") == 0
    assert_same_result(whole, folder)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 75, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_stops_and_the_run_continues_bit_identically(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """The signal comes while the second checkpoint is written: there are 39 epochs to go."""
    program = """
import os, sys, train
save, saved = train.save, []
def save_and_signal(*arguments):
    saved.append(1)
    if len(saved) == 2:
        os.kill(os.getpid(), int(sys.argv[1]))
    save(*arguments)
train.save = save_and_signal
sys.exit(train.main(sys.argv[3:]))
"""
    long = ["--set", "schedule.epochs=40", "--set", "run.stop_signals=[SIGUSR1, SIGHUP]"]
    folder = tmp_path / "stopped"
    process = start(folder, *long, launcher=[*PYTHON, "-c", program, str(int(number))])
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("preempted", code)
    assert 0 < status["step"] < 160
    stopped = load_checkpoint(folder / "checkpoints" / f"step_{status['step']:08d}.pt")
    straight = tmp_path / "straight"
    assert run(straight, *long, "--set", f"run.checkpoint_every_steps={status['step']}") == 0
    same = load_checkpoint(straight / "checkpoints" / f"step_{status['step']:08d}.pt")
    assert all(torch.equal(tensor, same["model"][name]) for name, tensor in stopped["model"].items())
    assert run(folder, *long, "--resume") == 0
    assert rows(folder) == rows(straight)


def test_a_run_whose_folder_vanishes_stops_and_does_not_make_it_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    average = train.update_average

    def delete_first(run: Any, progress: Any, moment: str) -> None:
        if progress.step == 2:
            shutil.rmtree(folder)
        average(run, progress, moment)

    monkeypatch.setattr(train, "update_average", delete_first)
    assert run(folder) == 74
    assert f"the run folder {folder} is gone" in capsys.readouterr().err
    assert not folder.exists()


def test_a_run_whose_pictures_cannot_be_written_is_done_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("experiment.observers.plot_curves", fail)
    assert run(tmp_path / "run", "--set", "schedule.epochs=1") == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 4
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
    assert "analyze.py curves" in caplog.text


def test_the_status_tells_the_step_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    average = train.update_average

    def look(run: Any, progress: Any, moment: str) -> None:
        if moment == "step":
            seen.append(json.loads((tmp_path / "run" / "status.json").read_text())["step"])
        average(run, progress, moment)

    monkeypatch.setattr(train, "update_average", look)
    assert run(tmp_path / "run", "--set", "schedule.epochs=1", "--set", "run.log_every_steps=1") == 0
    assert seen == [0, 1, 2, 3]


def test_a_run_goes_on_when_its_console_is_closed(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "headless"
    process = start(folder, launcher=PYTHON)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=600) == 0
    assert_same_result(whole, folder)


@pytest.mark.slow
def test_two_processes_with_their_own_batch_norm_statistics_continue_bit_identically(tmp_path: Path) -> None:
    norm = ["--set", "norm.name=batch", "--set", "norm.proxy=false", "--set", "norm.num_groups=null"]
    norm += ["--set", "batch.norm_batch_size=16"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    for folder, epochs in ((straight, 2), (stopped, 2)):
        output, _ = start(folder, *norm, "--set", f"schedule.epochs={epochs}", launcher=TWO_PROCESSES).communicate()
        assert (folder / "summary.json").exists(), output
    resumed = copy_up_to(stopped, tmp_path / "resumed", 6)
    output, _ = start(resumed, *norm, "--resume", launcher=TWO_PROCESSES).communicate()
    assert (resumed / "summary.json").exists(), output
    assert_same_result(straight, resumed)


def test_two_processes_give_the_weights_of_one_and_count_every_image_once(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    process = start(folder, launcher=TWO_PROCESSES)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "replicas 2" in output
    alone, together = final(whole)["model"], final(folder)["model"]
    # float32: the sum over the global batch is cut in two; eight updates later the rounding has grown to about 1e-6.
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=2e-5)
    for left, right in zip(rows(whole), rows(folder)):
        assert left.keys() == right.keys()
        images = 101 if left["split"] == "eval" else 256
        assert abs(left["top1"] - right["top1"]) * images < 1.5  # an image on the edge may fall on the other side
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-4)


def test_two_processes_share_batch_norm_statistics_when_norm_batch_size_spans_them(tmp_path: Path) -> None:
    norm = ["--set", "norm.name=batch", "--set", "norm.proxy=false", "--set", "norm.num_groups=null"]
    norm += ["--set", "batch.norm_batch_size=64"]
    assert run(tmp_path / "one", *norm) == 0
    process = start(tmp_path / "two", *norm, launcher=TWO_PROCESSES)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "shared by 2 replicas" in output
    alone, together = final(tmp_path / "one")["model"], final(tmp_path / "two")["model"]
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=2e-5)


def test_a_dry_run_tells_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "dry", "--dry-run", "--set", "batch.micro_batch_size=16") == 0
    output = capsys.readouterr().out
    for part in (
        "cpu (asked for)",
        "micro_batch_size 16 x gradient_accumulation 4 x replicas 1",
        "20,098 parameters",
        "multiply-adds",
        "MiB of activations",
        "8 = 2 epochs x 4",
    ):
        assert part in output
    assert not (tmp_path / "dry").exists()


def test_a_dry_run_plans_without_the_weights_that_training_starts_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert run(tmp_path / "dry", "--dry-run", "--set", "model.pretrained=runs/none/such.pt") == 0
    assert "model.pretrained runs/none/such.pt does not exist. Planned with random weights instead" in caplog.text
    assert "8 = 2 epochs x 4" in capsys.readouterr().out


def test_print_config_prints_yaml_that_is_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--config", "rn50_gn8pn", "--print-config"]) == 0
    output = capsys.readouterr().out
    for part in ("global_batch_size: 1024", "keep_checkpoints:", "crop_padding: null"):
        assert part in output


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["--set", "model.name=resnet21"], 2, ["resnet21", "resnet20"]),
        (["--set", "norm.num_groups=5"], 2, ["5", "divi"]),
        (["--set", "norm.name=layer"], 2, ["num_groups", "no effect"]),
        (["--set", "batch.global_batch_size=4096"], 2, ["4096", "256 training images"]),
        (["--set", "batch.micro_batch_size=48"], 2, ["micro_batch_size 48"]),
        (["--set", "batch.norm_batch_size=8"], 2, ["norm_batch_size 8"]),
        (["--device", "ipu"], 2, ["device.name ipu"]),
        (["--device", "abacus"], 2, ["abacus"]),
        (["--set", "data.crop_padding=16"], 2, ["crop_padding"]),
        (["--set", "run.seed=99999999999999999999"], 2, ["run.seed"]),
        (["--set", "optimizer.learning_rate=.inf"], 2, ["learning_rate", "inf"]),
        (
            ["--set", "data.image_size=1", "--set", "data.crop_padding=null", "--set", "model.width=4"],
            2,
            ["single value"],
        ),
    ],
)
def test_a_run_that_cannot_be_is_refused_without_a_traceback(
    tmp_path: Path, arguments: List[str], code: int, parts: List[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "refused", *arguments) == code
    _, marker, error = capsys.readouterr().err.rpartition("error: ")
    assert marker and "Traceback" not in error
    assert "model.name" in arguments[-1] or len(error.strip().splitlines()) == 1  # names of networks are a table
    for part in parts:
        assert part in error


def test_imagenet_that_is_not_there_says_where_it_belongs_and_what_to_try(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--config",
        "rn50_gn8pn",
        "--output-dir",
        str(tmp_path / "run"),
        "--set",
        f"data.dir={tmp_path}/imagenet",
    ]
    assert train.main(arguments) == 3
    error = capsys.readouterr().err
    for part in (f"{tmp_path}/imagenet", "data.dir", "--set data.name=generated"):
        assert part in error


def test_a_folder_that_cannot_be_written_fails_before_anything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert run(tmp_path / "file" / "run") == 2
    assert "cannot write to the output folder" in capsys.readouterr().err


def test_two_runs_at_once_in_one_folder_are_refused_with_the_holder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from experiment.run_folder import RunFolder

    folder = RunFolder(tmp_path / "shared")
    folder.acquire(resume=False)
    assert run(tmp_path / "shared") == 2
    assert f"pid {os.getpid()}" in capsys.readouterr().err
    folder.release()
    assert run(tmp_path / "shared", "--set", "schedule.epochs=1") == 0


def test_a_diverging_run_ends_with_its_reason_and_leaves_finite_checkpoints(tmp_path: Path) -> None:
    folder = tmp_path / "diverged"
    code = run(folder, "--set", "optimizer.learning_rate=1e30", "--set", "schedule.warmup_epochs=1")
    assert code == 5
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 5)
    assert "NonFiniteLossError" in status["reason"]


def test_wandb_offline_keeps_its_files_and_changes_nothing(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tracked"
    assert run(folder, "--set", "run.wandb=offline") == 0
    assert_same_result(whole, folder)
    assert list((folder / "wandb").glob("offline-run-*"))


BATCH_NORM_OF_PAIRS = ["norm.name=batch", "norm.proxy=false", "norm.num_groups=null", "batch.norm_batch_size=2"]


@pytest.mark.parametrize("averaging", [[], ["averaging.every=epoch", "averaging.decay=0.9"]])
def test_batch_norm_is_evaluated_with_statistics_taken_anew_too_and_the_checkpoint_keeps_the_running_ones(
    tmp_path: Path, averaging: List[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # At this rate the running statistics of 8 updates are far from those of the last weights.
    settings = [*BATCH_NORM_OF_PAIRS, *averaging, "run.reestimation_images=130", "run.evaluate_training_images=100"]
    options = [word for setting in settings for word in ("--set", setting)]
    assert run(tmp_path, *options) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    last = rows(tmp_path)[-1]
    assert {name: summary[name] for name in ("top1", "top5", "loss")} == {
        name: last[name] for name in ("top1", "top5", "loss")
    }
    assert summary["train"]["images"] == 100
    capsys.readouterr()
    found = {}
    for name, more in {"saved": [], "train": ["--split", "train"], "anew": ["--reestimate-statistics"]}.items():
        assert evaluate.main([str(tmp_path), "--device", "cpu", *more]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    for name in ("top1", "top5", "loss"):  # float32 in batches of 64 there and of 100 here
        assert found["saved"][name] == pytest.approx(summary[name], abs=1e-5)
        assert found["anew"][name] == pytest.approx(summary["test_reestimated"][name], abs=1e-4)
    assert found["anew"]["loss"] != pytest.approx(found["saved"]["loss"], abs=1e-3)
    assert (found["train"]["images"], found["train"]["split"]) == (256, "train")
    assert (found["anew"]["statistics"], found["saved"]["statistics"]) == ("re-estimated", "as saved")


def test_what_is_measured_after_the_last_epoch_can_be_left_out(tmp_path: Path) -> None:
    settings = [*BATCH_NORM_OF_PAIRS, "run.reestimation_images=0", "run.evaluate_training_images=0"]
    assert run(tmp_path, *[word for setting in settings for word in ("--set", setting)]) == 0
    assert not {"train", "test_reestimated"} & json.loads((tmp_path / "summary.json").read_text()).keys()


def test_a_run_stopped_before_the_last_measurements_makes_them_when_it_is_resumed(whole: Path, tmp_path: Path) -> None:
    folder = copy_up_to(whole, tmp_path / "unmeasured", 8)
    assert not (folder / "summary.json").exists()
    assert run(folder, "--resume") == 0
    first, second = (json.loads((path / "summary.json").read_text()) for path in (whole, folder))
    assert first["train"] == second["train"]


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        (["model.activation=gellu"], "unknown activation 'gellu'"),
        (
            ["model.activation=silu", "norm.name=evonorm_s0", "norm.proxy=false"],
            "model.activation silu has no effect after norm evonorm_s0",
        ),
        (["norm.num_samples=100"], "num_samples=100 has no effect with proxy_method 'exact'"),
        (["norm.name=dyt", "norm.num_groups=null"], "norm is 'dyt': its output does not have mean 0"),
    ],
)
def test_activations_and_norms_that_do_not_go_together_are_refused(
    tmp_path: Path, settings: List[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *[word for setting in settings for word in ("--set", setting)]) == 2
    assert part in capsys.readouterr().err


def test_a_run_with_another_activation_and_sampled_proxies_says_so_and_its_weights_belong_to_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["model.activation=gelu", "norm.proxy_method=sampled", "norm.num_samples=50", "schedule.epochs=1"]
    folder = tmp_path / "run"
    assert run(folder, *[word for setting in settings for word in ("--set", setting)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["activation"], summary["norm"]["num_samples"]) == ("gelu", 50)
    assert evaluate.main([str(folder), "--device", "cpu", "--set", "model.activation=relu"]) == 4
    assert "trained with the activation gelu, and this network has relu" in capsys.readouterr().err
    start = ["--set", f"model.pretrained={folder}"]
    assert run(tmp_path / "second", *start) == 4
    assert run(tmp_path / "third", *start, "--set", "model.activation=gelu", "--set", "schedule.epochs=1") == 0


def test_a_run_without_a_terminal_says_where_it_is_at_each_log_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--set", "run.log_every_steps=2", "--set", "device.compile=false") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    positions = [line.split("  ")[0] for line in lines]
    assert positions == ["epoch 0.50/2", "epoch 1/2", "epoch 1.50/2", "epoch 2/2"]
    assert all("loss" in line and "top1" in line and "images/s" in line for line in lines)
    assert ["left" in line for line in lines] == [True, True, True, False] and lines[-1].endswith("finished")


def test_precision_auto_is_recorded_as_what_the_device_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("backends.torch_native.device.has_bfloat16_instructions", lambda: False)
    assert run(tmp_path, "--set", "device.precision=auto", "--set", "schedule.epochs=1") == 0
    assert json.loads((tmp_path / "summary.json").read_text())["precision"] == "float32"
    assert final(tmp_path, 4)["execution"]["precision"] == "float32"


def test_runs_of_different_seeds_go_to_different_folders_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in ([], ["--set", "run.seed=1"]):
        assert train.main([*SMALL, *seed]) == 0
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"generated_smoke", "generated_smoke-seed1"}
    assert train.main([*SMALL, "--set", "run.seed=1"]) == 2  # a second time it already holds a run
    assert train.main([*SMALL, "--set", "run.seed=1", "--resume"]) == 0
