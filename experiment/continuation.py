"""Checkpoints of a run: written so that it can continue exactly, restored, and the same for all processes."""

from __future__ import annotations

from pathlib import Path
from typing import Tuple

from backends import Session
from configs.counted import counted
from datasets import DataError
from experiment.checkpoint import best_checkpoint, check_norm, load_checkpoint, newest_checkpoint, save_checkpoint
from experiment.progress import Progress
from experiment.resume import check_same_run, extension_text, why_inexact
from experiment.run import Run
from experiment.run_output import RunOutput
from training.averaging import WeightAverage, build_average
from training.metrics import StepSums
from training.weights import CheckpointError


def save(run: Run, output: RunOutput, progress: Progress) -> None:
    """Save a checkpoint of everything that an exact continuation needs. Every process takes part.

    It is copied here, and written while the training goes on: see RunOutput.write_aside.
    """
    session, is_primary = run.session, run.device.is_primary
    state = session.state()
    progress.is_saved = True
    for name in ("interval", "epoch"):  # the primary process takes over what the others have summed
        total = session.total(getattr(progress, name))
        setattr(progress, name, total if is_primary else StepSums())
    if is_primary:
        output.folder.check_there()
        record = {
            **state,
            "average": None if progress.average is None else progress.average.state(),
            "step": progress.step,
            "progress": progress.state(),
            "seed": run.config.run.seed,
            "config": run.config.model_dump(mode="json"),
            "norm": run.norm_record,
            "execution": run.execution,
            "class_names": list(run.data.class_names),
            "data_fingerprint": run.data.fingerprint,
        }
        folder, step, keep = output.folder.checkpoints, progress.step, run.config.run.keep_checkpoints
        best = None if progress.best is None else progress.best.step
        output.write_aside(lambda: save_checkpoint(folder, record, step, keep, best))


def restore(run: Run, output: RunOutput, may_extend: bool = False) -> Progress:
    """Place the newest intact checkpoint's weights on the device and return its progress, or a new one without any.

    Args:
        run: whose session takes the weights.
        output: of the run.
        may_extend: whether schedule.epochs may be more than it was.
    """
    path = newest_checkpoint(output.folder.checkpoints, tell=output.say)
    if path is None:
        output.say(f"no checkpoint in {output.folder.path}: starting from the beginning")
        return Progress(average=build_average(run.config.averaging))
    saved = load_checkpoint(path)
    check_norm(saved["norm"], run.norm_record)
    fewer_epochs = check_same_run(saved["config"], run.config.model_dump(mode="json"), str(path), may_extend)
    if saved["data_fingerprint"] != run.data.fingerprint:
        raise DataError(f"the images of {run.config.data.name} are not those that {path} was trained on; restore them")
    reasons = why_inexact(saved["execution"], run.execution)
    if reasons:
        output.say(f"exactness not guaranteed because {'; '.join(reasons)}")
    try:
        run.session.load_state({"model": saved["model"], "optimizer": saved["optimizer"]})
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    progress = Progress.from_state(saved["progress"])
    if saved["average"] is not None:
        assert run.config.averaging.decay is not None  # as check_same_run and the checkpoint's schema found
        progress.average = WeightAverage.from_state(saved["average"], run.config.averaging.decay, run.session.weights())
    check_position(progress, run, path)
    if fewer_epochs is not None:
        rate, schedule = run.config.optimizer.learning_rate, run.config.schedule
        output.say(extension_text(schedule, fewer_epochs, rate, progress.step, run.steps_per_epoch))
        output.set_aside_summary(f"summary_of_{fewer_epochs}_epochs.json")
        progress.extended = [*progress.extended, {"epochs": fewer_epochs, "step": progress.step}]
    if not run.device.is_primary:
        progress.interval, progress.epoch = StepSums(), StepSums()  # the primary process has those of all
    output.say(f"resuming from {path}")
    if progress.best is not None and run.device.is_primary:
        try:
            best_checkpoint(output.folder.checkpoints)
        except CheckpointError as error:
            output.say(f"the best checkpoint is lost, and only a better epoch will replace it: {error}")
    return progress


def check_position(progress: Progress, run: Run, path: Path) -> None:
    """Refuse a step that this run does not reach, or an evaluation that it has not made.

    Raises:
        CheckpointError: as said.
    """
    step, epoch = progress.step, run.steps_per_epoch
    finished = {step // epoch * epoch, (step - 1) // epoch * epoch}  # its own evaluation may not be done yet
    if not 0 < step <= run.steps or progress.evaluated_step not in finished:
        raise CheckpointError(
            f"{path} is of step {step}, with epochs finished to step {progress.evaluated_step}, which does not fit "
            f"{counted(run.config.schedule.epochs, 'epoch')} of {counted(epoch, 'step')}; it is damaged, or from "
            "another run"
        )


def least_and_largest(session: Session, number: int) -> Tuple[int, int]:
    """Of the numbers that all processes give. Every process must call it."""
    return -session.agree(-number), session.agree(number)


def check_same_step(session: Session, step: int, folder: Path) -> None:
    """Refuse to continue from different checkpoints in different processes.

    Raises:
        CheckpointError: as said.
    """
    oldest, newest = least_and_largest(session, step)
    if newest != oldest:
        raise CheckpointError(
            f"the processes found different checkpoints in {folder}, from step {oldest} to step {newest}; all of "
            "them must share the run folder"
        )


def check_same_images(session: Session, fingerprint: str) -> None:
    """Refuse different images in different processes: their shares would overlap and leave others out.

    Raises:
        DataError: as said.
    """
    first_digits = int(fingerprint[:15], 16)  # 60 bits: as much as one number between processes holds
    least, largest = least_and_largest(session, first_digits)
    if least != largest:
        raise DataError(
            "the processes read different images (numbers, names, labels or sizes); every machine needs the same "
            "data set, whole: `python -m datasets.check` on each machine lists what it has"
        )
