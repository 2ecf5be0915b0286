"""Trains one experiment.

    python train.py --config fashion_rn20_gn8pn

The story of a run, from top to bottom: configuration -> device -> data -> network -> batch plan -> loop -> report.
The same command runs under torchrun, one process per replica.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import shlex
import sys
from pathlib import Path
from typing import Callable, Dict, List, Optional

from backends import LostProcessError, choose_device
from backends.process_group import explained_loss
from configs import Config, ConfigError, config_name, dump_config, load_config, own_seed
from configs.command_line import log_to_console
from configs.counted import counted
from configs.exit_codes import EXPLAINED, exit_code_of, exit_code_of_signal, explain
from configs.passwords import hide_passwords
from experiment.checkpoint import has_checkpoint
from experiment.continuation import check_same_images, check_same_step, restore, save
from experiment.describe import describe, describe_norms
from experiment.ending import end_with
from experiment.guarded_loading import explained_loading
from experiment.lockstep import Lockstep
from experiment.measurement import evaluate, measure_end
from experiment.observers import Curves, Observers
from experiment.power_log import PowerLog
from experiment.prepare import prepare
from experiment.progress import Progress, Stopwatch, is_due
from experiment.provenance import as_comment, provenance
from experiment.report import report
from experiment.run import Run
from experiment.run_folder import RunFolder
from experiment.run_output import RunOutput
from experiment.stop_signals import StopSignals
from experiment.tracker import build_trackers, check_trackers
from experiment.words import speed_text, time_left
from training.averaging import build_average
from training.metrics import Means, StepSums
from training.schedule import build_schedule


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command line and return the exit code.

    0 done, 2 configuration, 3 data, 4 checkpoint, 5 non-finite loss, 74 disk, 75 and 130 saved and stopped by SIGTERM
    and SIGINT, 76 another process of the run is gone.
    """
    options = parse_arguments(arguments)
    log_to_console(logging.INFO)
    given = (("--device", "device.name", options.device), ("--output-dir", "run.output_dir", options.output_dir))
    try:
        if options.extend_epochs and not options.resume:
            raise ConfigError("--extend-epochs continues a run for longer; add --resume, or leave it out")
        config = load_config(options.config, options.set, [setting for setting in given if setting[2] is not None])
        if options.print_config:
            print(dump_config(config), end="")
            return 0
        return run_experiment(config_name(options.config), config, options)
    except EXPLAINED as error:
        return explain(error)


def parse_arguments(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--config", required=True, metavar="NAME|PATH", help="an experiment of configs/, or a YAML file")
    add(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one value; null leaves it out; repeatable",
    )
    add("--device", metavar="NAME", help="auto, cpu, cuda, ipu, ipu_model or ipu_emulator; overrides device.name")
    add("--output-dir", metavar="DIR", help="the run folder; overrides run.output_dir")
    add("--resume", action="store_true", help="continue from the newest checkpoint of the run folder, if any")
    add("--extend-epochs", action="store_true", help="with --resume: schedule.epochs may be more than it was")
    add("--print-config", action="store_true", help="print the complete configuration and stop")
    add("--dry-run", action="store_true", help="print device, batch plan, network, memory and steps, and stop")
    options = parser.parse_args(arguments)
    options.command = shlex.join(["python", "train.py", *(sys.argv[1:] if arguments is None else arguments)])
    return options


def default_folder(name_or_path: str, config: Config) -> str:
    """runs/<name of the config>; with another seed than that of its file, -seed<N> behind it."""
    name, seed = config_name(name_or_path), config.run.seed
    return f"runs/{name}" if seed == own_seed(name_or_path) else f"runs/{name}-seed{seed}"


def run_experiment(name: str, config: Config, options: argparse.Namespace) -> int:
    """Train one run, from a checked configuration to its summary, and return the exit code."""
    check_trackers(config)
    with contextlib.ExitStack() as at_end:
        device = choose_device(config.device, config.ipu, options.dry_run)
        at_end.callback(device.close)
        if options.dry_run:
            planned = prepare(name, config, device, dry_run=True)
            if device.is_primary:
                print(describe(planned))
                if device.runs_kernels:
                    print(describe_norms(planned))
            if planned.placement.refusals:
                raise ConfigError(f"this is not expected to run: {'; '.join(planned.placement.refusals)}")
            return 0
        folder = RunFolder(Path(config.run.output_dir or default_folder(options.config, config)))
        with StopSignals(config.run.stop_signals) as signals, RunOutput(
            folder, device.is_primary, options.resume
        ) as output:
            try:
                # A checkpoint holds all weights: what the run started from need not be there any more.
                goes_on = options.resume and has_checkpoint(folder.checkpoints)
                with explained_loss():
                    run = prepare(name, config, device, weights_follow=goes_on).start()
                    at_end.callback(run.session.close)
                    output.say(describe(run))
                    with explained_loading():
                        return train(run, output, Lockstep(run.session, signals), options)
            except LostProcessError as error:
                output.lost(str(error), exit_code_of(error))
                raise
            except Exception as error:
                output.ended("failed", f"{type(error).__name__}: {hide_passwords(str(error))}", exit_code_of(error))
                raise


def train(run: Run, output: RunOutput, lockstep: Lockstep, options: argparse.Namespace) -> int:
    """From the first or the restored step to the report. Returns the exit code."""
    progress = (
        restore(run, output, options.extend_epochs)
        if options.resume
        else Progress(average=build_average(run.config.averaging))
    )
    check_same_step(run.session, progress.step, output.folder.path)
    check_same_images(run.session, run.data.fingerprint)
    if progress.evaluated_step == run.steps and output.folder.summary.exists():
        output.say(f"nothing to do: {output.folder.path} holds the finished run of {counted(run.steps, 'step')}")
        return 0
    origin = provenance(options.command)
    observers = Observers([Curves(output), PowerLog(run, output)], run.name, output, run.device.is_primary)
    own_name = Path(default_folder(options.config, run.config)).name  # with its seed, where that is not the file's
    observed = observers.resume(progress.step, progress.evaluated_step)
    output.start(
        as_comment(origin) + dump_config(run.config),
        lambda records: build_trackers(run.config, output.folder, own_name, [*records, *observed]),
        step=progress.step,
        evaluated_step=progress.evaluated_step,
        steps=run.steps,
        images_per_step=run.plan.global_batch_size,
    )
    train_epochs(run, output, lockstep, progress, observers)
    measured = {} if lockstep.is_stopped else measure_end(run, lockstep, progress.average)
    if lockstep.is_stopped:
        if not progress.is_saved:
            save(run, output, progress)
        output.settle()
        saved = f"saved at step {progress.step:,}; continue with --resume" if progress.step else "before the first step"
        if lockstep.failure is not None:
            output.say(f"images cannot be loaded: {saved}")
            raise lockstep.failure
        reason = f"signal {lockstep.signal_number}"
        exit_code = exit_code_of_signal(lockstep.signal_number)
        output.say(f"stopped by {reason}, {saved}")
        output.ended("preempted", f"{reason}, {saved}", exit_code)
        return exit_code
    report(run, output, progress, {**measured, **origin})
    observers.at_end()
    return 0


def train_epochs(run: Run, output: RunOutput, lockstep: Lockstep, progress: Progress, observers: Observers) -> None:
    """Loop over epochs of weight updates, each followed by its evaluation, to the end or until it is stopped."""
    learning_rate = build_schedule(run.config.schedule, run.config.optimizer.learning_rate, run.steps_per_epoch)
    if progress.step == 0:
        observers.after_epoch(0)
    while progress.evaluated_step < run.steps and not lockstep.is_stopped:
        if progress.step % run.steps_per_epoch == 0 and progress.evaluated_step < progress.step:
            finish_epoch(run, output, lockstep, progress, observers)
        else:
            train_epoch(run, output, lockstep, progress, learning_rate)


def train_epoch(
    run: Run, output: RunOutput, lockstep: Lockstep, progress: Progress, learning_rate: Callable[[int], float]
) -> None:
    """Weight updates to the end of the epoch, or until the loop is stopped."""
    config, session, updates = run.config, run.session, run.plan.device_iterations
    epoch, first_step = divmod(progress.step, run.steps_per_epoch)
    clock = Stopwatch()
    for batch in lockstep.batches(session.training_batches(run.data.train, epoch, first_step, config.data.workers)):
        rate, compiles = learning_rate(progress.step), session.will_compile
        if compiles:
            progress.add_training_seconds(clock.lap())
            output.say("the first step compiles, once a process; images/s leave it out")
        progress.count(session.train_step(batch, progress.step, rate), updates)
        if compiles:
            seconds = clock.lap()
            progress.add_compilation(seconds, updates)
            output.say(f"compiled, with the first step in {seconds:.0f} s")
        update_average(run, progress, "step")
        output.advance(progress.step)
        at_end = progress.step % run.steps_per_epoch == 0
        if at_end:
            update_average(run, progress, "epoch")
        if at_end or is_due(config.run.log_every_steps, progress.step, updates):
            progress.add_training_seconds(clock.lap())
            sums, position = session.total(progress.interval), progress.step / run.steps_per_epoch
            speed = progress.interval_speed(int(sums.images), run.plan.global_batch_size)
            output.record(
                "train",
                position,
                sums,
                math.nan if speed is None else speed,
                learning_rate=rate,
                gradient_norm=mean_gradient_norm(run, sums),
            )
            output.show(
                f"epoch {position:.2f}/{config.schedule.epochs}",
                f"loss {sums.means().loss:.4f} top1 {sums.means().top1:.4f}",
                f"{speed_text(speed)} | {time_left(progress.seconds_left(run.steps))}",
                is_line=not at_end,  # the epoch's own line follows
            )
            progress.end_interval()
        every = config.run.checkpoint_every_steps
        if every and is_due(every, progress.step, updates) and not at_end:
            progress.add_training_seconds(clock.lap())
            save(run, output, progress)
            clock.lap()  # writing a checkpoint is not training
    progress.add_training_seconds(clock.lap())


def mean_gradient_norm(run: Run, sums: StepSums) -> Optional[float]:
    """Of the weight updates that `sums` are of, before clipping; None where gradients are not clipped."""
    if run.config.optimizer.clip_norm is None:
        return None
    return float(sums.gradient_norm) * run.plan.global_batch_size / int(sums.images)


def finish_epoch(run: Run, output: RunOutput, lockstep: Lockstep, progress: Progress, observers: Observers) -> None:
    """Evaluate if that is due, print the epoch's line and save its checkpoint; nothing of it if stopped on the way."""
    config, epoch = run.config, progress.step // run.steps_per_epoch
    clock = Stopwatch()
    trained = run.session.total(progress.epoch)
    line = (
        f"epoch {epoch}/{config.schedule.epochs}  train loss {trained.means().loss:.4f} top1 {trained.means().top1:.4f}"
    )
    is_evaluated = epoch % config.run.eval_every_epochs == 0 or progress.step == run.steps
    weights = None if progress.average is None else progress.average.weights
    splits = {"validation": run.data.validation, "eval": run.data.evaluation if is_evaluated else None}
    found: Dict[str, Means] = {}
    for split, images in splits.items():
        if images is None:
            continue
        sums = evaluate(run, lockstep, images, weights)
        seconds = clock.lap()
        progress.seconds += seconds
        if lockstep.is_stopped:
            return
        found[split] = sums.means()
        output.record(split, epoch, sums, int(sums.images) / seconds)
        line += f" | {split} loss {found[split].loss:.4f} top1 {found[split].top1:.4f}"
    progress.add_evaluations(epoch, found.get("validation"), found.get("eval"))
    observers.after_epoch(epoch)
    progress.seconds += clock.lap()
    speed = progress.speed(run.plan.global_batch_size)
    output.say(f"{line} | {speed_text(speed)} | {time_left(progress.seconds_left(run.steps))}")
    progress.end_epoch()
    save(run, output, progress)


def update_average(run: Run, progress: Progress, moment: str) -> None:
    """Take the weights into their average, where that is made at this moment, "step" or "epoch"."""
    if progress.average is not None and run.config.averaging.every == moment:
        progress.average.update(run.session.weights())


if __name__ == "__main__":
    end_with(main)
