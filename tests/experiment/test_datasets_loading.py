"""Loading processes that fail, in real processes: one clear error each; unreadable images that are replaced."""

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
import torch
from made_images import write_image_folder
from torch.utils.data import DataLoader, Dataset, get_worker_info

import train
from backends import image_loader
from configs.batch import BatchPlan
from configs.errors import ConfigError
from configs.schema import DataConfig
from datasets import DataError, build_datasets
from datasets.data_sets import TrainingImages
from datasets.generated import GeneratedImages
from experiment.checkpoint import load_checkpoint
from experiment.guarded_loading import explained_loading, guarded
from training.order import TrainingBatches

ROOT = Path(__file__).resolve().parents[2]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def bus_error() -> None:
    os.kill(os.getpid(), signal.SIGBUS)


def leave() -> None:
    os._exit(7)


def hang() -> None:
    time.sleep(100)


def exhaust() -> None:
    raise MemoryError


def fill() -> None:
    raise OSError(28, "No space left on device", "/cache/x.tar")


def decode() -> None:
    b"\xff".decode("utf-8")


def refuse() -> None:
    raise DataError("x.jpg (class ant): cannot be used: broken; replace or remove it")


def defect() -> None:
    raise KeyError("a defect of the program")


class Failing(Dataset):
    """Tensors, until image 20 is asked for."""

    def __init__(self, fail: Callable[[], None]) -> None:
        self.fail = fail

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, int]:
        if index == 20:
            self.fail()
        return torch.zeros(3), index


FAILURES: Dict[str, Tuple[Callable[[], None], str]] = {
    "killed": (kill, r"loading process \d+ was ended by the signal Killed: .*out of memory.*data.workers"),
    "bus error": (bus_error, r"loading process \d+ was ended by the signal Bus error: .*/dev/shm"),
    "left": (leave, r"loading process \d+ exited with code 7; --set data.workers=0 shows where$"),
    "hangs": (hang, r"no images for 2 seconds: a loading process hangs; .*data.workers=0"),
    "a defect": (
        defect,
        r"in loading process \d: KeyError: 'a defect of the program' \(test_datasets_loading\.py:\d+\); "
        r"--set data\.workers=0 shows where$",
    ),
    "no memory": (
        exhaust,
        r"in loading process \d: MemoryError \(test_datasets_loading\.py:\d+\); lower data\.workers$",
    ),
    "a full disk": (fill, r"in loading process \d: OSError: \[Errno 28\] No space left on device: '/cache/x\.tar' \("),
    "an error of several arguments": (decode, r"in loading process \d: UnicodeDecodeError: 'utf-8' codec .* \("),
    "unreadable": (
        refuse,
        r"in loading process \d: x\.jpg \(class ant\): cannot be used: broken; replace or remove it$",
    ),
}


@pytest.mark.parametrize(("fail", "message"), FAILURES.values(), ids=FAILURES)
def test_a_failing_loading_process_gives_one_clear_error_in_time(fail, message):
    is_hanging = fail is hang
    with pytest.raises(DataError, match=f"^{message}") as caught:
        # Only the process that hangs may take longer than the limit, however busy the machine is.
        for _ in guarded(DataLoader(Failing(fail), batch_size=4, num_workers=2, timeout=2 if is_hanging else 250)):
            pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "seen",
    [
        EOFError(),
        ConnectionResetError(104, "reset"),
        ConnectionRefusedError(111, "refused"),
        RuntimeError("DataLoader worker (pid(s) 5) exited unexpectedly"),
    ],
    ids=repr,
)
@pytest.mark.parametrize(("fail", "reason"), [(kill, "was ended by the signal Killed"), (leave, "exited with code 7")])
def test_how_the_end_of_a_loading_process_is_seen_does_not_change_what_is_said(fail, reason, seen):
    """Each of these was seen, depending on the moment; processes that end regularly are none that failed."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=target, daemon=True) for target in (int, fail, hang)]
    for process in processes:
        process.start()
    processes[0].join()
    processes[1].join()
    with pytest.raises(DataError, match=rf"^loading process {processes[1].pid} .*{reason}"):
        with explained_loading(processes):
            raise seen
    processes[2].kill()


def test_errors_that_a_loading_process_reports_are_not_its_end():
    context = multiprocessing.get_context("fork")
    process = context.Process(target=leave)
    process.start()
    process.join()
    with pytest.raises(DataError, match=r"^in loading process 0: ConnectionResetError"):
        with explained_loading([process]):
            raise ConnectionResetError(
                "Caught ConnectionResetError in DataLoader worker process 0.\nOriginal Traceback ..."
            )


def test_a_defect_without_loading_processes_stays_what_it_is():
    with pytest.raises(KeyError, match="a defect of the program"):
        with explained_loading():
            for _ in DataLoader(Failing(defect), batch_size=4, num_workers=0):
                pass


def test_errors_that_are_not_about_loading_pass():
    for error in (RuntimeError("shapes do not match"), OSError("disk full"), ValueError("x")):
        with pytest.raises(type(error), match=str(error)):
            with explained_loading():
                raise error


def test_a_broken_connection_is_explained():
    for error in (EOFError(), ConnectionResetError(104, "Connection reset by peer")):
        with pytest.raises(DataError, match=f"broke .{type(error).__name__}.: it ended"):
            with explained_loading():
                raise error


SMALL = ["--config", "generated_smoke", "--device", "cpu", "--set", "data.num_train_images=256"]
SMALL += ["--set", "data.num_eval_images=64", "--set", "schedule.epochs=2"]


@pytest.mark.parametrize(
    "fail", [kill, hang, refuse, exhaust, fill], ids=["killed", "hangs", "unreadable", "no memory", "a full disk"]
)
def test_a_run_whose_loading_process_fails_ends_with_code_3_and_can_be_continued(tmp_path, monkeypatch, capsys, fail):
    load = GeneratedImages.load
    marker = tmp_path / "failed"

    def failing(self: GeneratedImages, index: int) -> Tuple[Any, int]:
        # in the second epoch, once
        if get_worker_info() is not None and len(list(checkpoints.glob("*.pt"))) > 0 and not marker.exists():
            marker.touch()
            fail()
        return load(self, index)

    folder = tmp_path / "run"
    checkpoints = folder / "checkpoints"
    if fail is hang:
        monkeypatch.setattr(image_loader, "TIMEOUT_SECONDS", 15)  # more than any batch takes on a busy machine
    monkeypatch.setattr(GeneratedImages, "load", failing)
    assert train.main([*SMALL, "--output-dir", str(folder), "--set", "data.workers=1"]) == 3
    assert "loading process" in capsys.readouterr().err.strip().splitlines()[-1]
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    gc.collect()  # in one process the error's traceback keeps the loading process, and that the folder's lock
    assert train.main([*SMALL, "--output-dir", str(folder), "--set", "data.workers=1", "--resume"]) == 0
    whole = tmp_path / "whole"
    assert train.main([*SMALL, "--output-dir", str(whole)]) == 0
    assert weights(folder) == weights(whole)


def test_a_run_whose_loading_process_hangs_obeys_a_signal_at_once(tmp_path, monkeypatch):
    load = GeneratedImages.load
    folder, marker = tmp_path / "run", tmp_path / "hangs"

    def hanging(self: GeneratedImages, index: int) -> Tuple[Any, int]:
        if get_worker_info() is not None and (folder / "checkpoints").exists() and not marker.exists():
            marker.touch()
            time.sleep(100_000)
        return load(self, index)

    def end_the_wait() -> None:
        while not marker.exists():
            time.sleep(0.05)
        time.sleep(1)  # for the batches that were loaded before
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(GeneratedImages, "load", hanging)
    threading.Thread(target=end_the_wait, daemon=True).start()
    monkeypatch.setattr("backends.image_loader.TIMEOUT_SECONDS", 100_000)  # only the signal ends the wait
    assert train.main([*SMALL, "--output-dir", str(folder), "--set", "data.workers=2"]) == 75
    assert json.loads((folder / "status.json").read_text())["state"] == "preempted"
    gc.collect()
    assert train.main([*SMALL, "--output-dir", str(folder), "--set", "data.workers=1", "--resume"]) == 0
    assert train.main([*SMALL, "--output-dir", str(tmp_path / "whole")]) == 0
    assert weights(folder) == weights(tmp_path / "whole")


def test_an_image_that_another_process_cannot_read_is_named_in_status_json(tmp_path):
    images = write_image_folder(tmp_path / "images")
    plan = BatchPlan(2, 1, 1, 1, 2, 1, 1)  # an image for each of 2 processes
    (_, index), *_ = next(iter(TrainingBatches(6, plan, process=1, seed=7, epoch=0)))
    path = sorted((images / "train").glob("*/*.jpg"))[index]
    path.write_text("<html>")
    settings = [
        "data.name=image_folder", f"data.dir={images}", "data.image_size=16", "data.num_classes=null",
        "data.num_train_images=null", "data.num_eval_images=null", "data.crop_padding=null", "run.seed=7",
        "batch.global_batch_size=2", "batch.micro_batch_size=1", "model.width=4",
    ]  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    command += ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(tmp_path / "run")]
    command += [part for setting in settings for part in ("--set", setting)]
    ended = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=500)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert ended.returncode != 0 and (status["state"], status["exit_code"]) == ("failed", 3)
    assert f"in process 1: {path} (class {path.parent.name}): cannot be used: no image of" in json.dumps(status)


def weights(folder: Path) -> List[bytes]:
    newest = sorted((folder / "checkpoints").glob("*.pt"))[-1]
    return [tensor.numpy().tobytes() for tensor in load_checkpoint(newest)["model"].values()]


# Unreadable images that are replaced


def folder_config(folder: Path, **options: Any) -> DataConfig:
    return DataConfig(name="image_folder", dir=str(folder), image_size=16, min_crop_area=0.5, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six training images of which two are not images: numbers 1 and 4."""
    write_image_folder(tmp_path)
    (tmp_path / "train" / "ant" / "1.jpg").write_text("<html>")
    (tmp_path / "train" / "bee" / "1.jpg").write_bytes(b"")
    return tmp_path


def test_unreadable_images_are_replaced_by_others_that_depend_on_seed_epoch_and_index_alone(folder, caplog):
    first, second = (build_datasets(folder_config(folder, max_corrupt=2), 5).train for _ in range(2))
    keys = [(epoch, index) for epoch in range(8) for index in range(6)]
    images = {key: first[key] for key in keys}
    assert first.corrupt == 2
    for key in reversed(keys):
        assert torch.equal(second[key][0], images[key][0]) and second[key][1] == images[key][1]
    # the labels are those of the replacements: both classes come in place of image 1, an ant
    assert {images[epoch, 1][1] for epoch in range(8)} == {0, 1}
    assert len({images[epoch, 1][0].numpy().tobytes() for epoch in range(8)}) == 8
    said = [record.message for record in caplog.records if "another image takes its place" in record.message]
    assert len(said) == 4 and "ant/1.jpg (class ant)" in "".join(said)  # once a file and data set, not once an epoch


def test_all_loading_processes_count_together_and_one_too_many_is_an_error(folder):
    keys = [(0, index) for index in range(6)]
    train_images = build_datasets(folder_config(folder, max_corrupt=2), 5).train
    assert len(list(DataLoader(train_images, batch_size=1, sampler=keys, num_workers=2))) == 6
    assert train_images.corrupt == 2
    with pytest.raises(
        DataError, match=r"2 unreadable training images, more than data\.max_corrupt 1; the last: .*jpg"
    ):
        with explained_loading():
            few = build_datasets(folder_config(folder, max_corrupt=1), 5).train
            list(DataLoader(few, batch_size=1, sampler=keys, num_workers=2))


def test_when_no_image_is_readable_no_limit_helps() -> None:
    class Unreadable:
        must_copy = False

        def __len__(self) -> int:
            return 3

        def load(self, index: int) -> None:
            raise DataError(f"{index}.jpg is cut short")

    images = TrainingImages(Unreadable(), lambda image, random: image, 0, max_corrupt=9)
    with pytest.raises(DataError, match=r"all 3 training images are unreadable; the last: \d.jpg is cut short"):
        images[0, 1]


def test_unreadable_images_are_replaced_with_auto_augment_too(folder):
    train_images = build_datasets(folder_config(folder, max_corrupt=2, auto_augment="imagenet"), 5).train
    assert all(train_images[0, index][0].shape == (3, 16, 16) for index in range(6)) and train_images.corrupt == 2


def test_unreadable_images_to_evaluate_on_are_an_error_always(folder):
    (folder / "val" / "ant" / "0.jpg").write_bytes(b"")
    evaluation = build_datasets(folder_config(folder, max_corrupt=2), 5).evaluation
    with pytest.raises(DataError, match=r"val/ant/0\.jpg \(class ant\): cannot be used"):
        _ = evaluation[0]


def test_a_limit_has_no_meaning_for_images_in_memory():
    with pytest.raises(ConfigError, match=r"max_corrupt 2 has no effect with data\.name generated"):
        build_datasets(DataConfig(name="generated", max_corrupt=2), 0)


@pytest.mark.parametrize("parent_ends", ["before the worker starts", "while the worker waits"])
def test_a_loading_process_ends_with_its_parent(parent_ends: str) -> None:
    program = """
import os, sys, time
from backends.image_loader import end_with_parent
parent, is_first = os.getpid(), sys.argv[1].startswith("before")
reading, writing = os.pipe()
if os.fork() == 0:
    while is_first and os.getppid() == parent:
        time.sleep(0.01)
    end_with_parent(parent, 0)
    os.write(writing, b"ready")
    time.sleep(1000)
elif not is_first:
    os.read(reading, 5)
os._exit(0)
"""
    # The worker holds the output too: run() returns when both have ended, and kills nothing but the parent in time.
    subprocess.run([sys.executable, "-c", program, parent_ends], cwd=ROOT, capture_output=True, check=True, timeout=600)
