"""Speeds and times of a run: compilation is in its seconds and not in its images per second."""

import pytest
from tqdm import tqdm

from configs.counted import counted
from experiment.progress import Progress
from experiment.run_folder import RunFolder
from experiment.run_output import RunOutput
from experiment.words import time_left
from training.metrics import StepSums


def sums(images: int) -> StepSums:
    return StepSums(1.0, 1, 1, images)


def test_the_step_that_compiled_counts_neither_its_images_nor_its_seconds() -> None:
    progress = Progress()
    progress.count(sums(10), 1)
    progress.add_compilation(60.0, 1)
    assert progress.interval_speed(10, 10) is None and progress.speed(10) is None
    for _ in range(3):
        progress.count(sums(10), 1)
    progress.add_training_seconds(6.0)
    # 30 images in 6 seconds; 66 seconds for 4 steps leave 99 for 6 more.
    assert progress.interval_speed(40, 10) == 5.0 and progress.speed(10) == 5.0
    assert (progress.seconds, progress.seconds_left(10)) == (66.0, 99.0)
    progress.end_interval()
    progress.count(sums(10), 1)
    progress.add_training_seconds(1.0)
    assert progress.interval_speed(10, 10) == 10.0
    assert progress.speed(10) == pytest.approx(40 / 7)
    assert Progress.from_state(progress.state()) == progress


def test_a_checkpoint_from_before_compilation_was_told_apart_is_read() -> None:
    state = Progress().state()
    del state["untimed_steps"], state["interval_untimed_steps"]
    assert Progress.from_state(state) == Progress()


@pytest.fixture
def output(tmp_path) -> RunOutput:
    return RunOutput(RunFolder(tmp_path), is_primary=False, resume=False)


def test_without_a_terminal_progress_is_lines_and_on_one_it_is_beside_the_bar(
    output: RunOutput, capsys: pytest.CaptureFixture[str]
) -> None:
    output.show("epoch 0.50/2", "loss 1.0000 top1 0.5000", "9 images/s", is_line=True)
    assert capsys.readouterr().out == ""  # another process's
    output._is_primary = True
    output._bar = tqdm(total=4, disable=True)
    output.show("epoch 0.50/2", "loss 1.0000 top1 0.5000", "9 images/s", is_line=True)
    output.show("epoch 1.00/2", "loss 1.0000 top1 0.5000", "9 images/s", is_line=False)
    assert capsys.readouterr().out == "epoch 0.50/2  loss 1.0000 top1 0.5000 | 9 images/s\n"
    output._bar = tqdm(total=4)
    output.show("epoch 1.50/2", "loss 0.9000 top1 0.6000", "9 images/s", is_line=True)
    output._bar.refresh()
    output._bar.close()
    captured = capsys.readouterr()
    assert captured.out == "" and "epoch 1.50/2" in captured.err and "loss 0.9000 top1 0.6000" in captured.err


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "finished"),
        (0.4, "under 1 min left"),
        (60, "1 min left"),
        (7199, "120 min left"),
        (7200, "2.0 h left"),
        (86400, "24.0 h left"),
    ],
)
def test_the_time_left_is_never_zero_minutes(seconds: float, text: str) -> None:
    assert time_left(seconds) == text


def test_one_is_singular() -> None:
    assert [counted(number, "thread") for number in (0, 1, 2)] == ["0 threads", "1 thread", "2 threads"]
