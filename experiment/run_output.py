"""What one run writes and shows: records, progress, status, summary. Processes other than the primary write nothing."""

from __future__ import annotations

import logging
import os
import sys
from types import TracebackType
from typing import Any, Callable, Dict, Iterable, Optional, Type

from tqdm import tqdm

from configs.atomic_file import partial_files, replace_file, replace_text
from configs.bounded_file import MAX_LOG_BYTES, read_bounded
from configs.counted import counted
from experiment.aside import Aside
from experiment.checkpoint import remove_partial_files
from experiment.metrics_log import MetricsLog, read_state, write_status, write_summary
from experiment.run_folder import RunFolder
from experiment.tracker import Record, Trackers
from training.metrics import StepSums

logger = logging.getLogger(__name__)


class RunOutput:
    """The run folder, the progress bar and the tracker of one run. Used as a context.

    Args:
        folder: where it writes.
        is_primary: false makes every method do nothing.
        resume: whether the folder may hold a run, which is continued.

    Raises:
        RunFolderError: the folder cannot be used.
    """

    def __init__(self, folder: RunFolder, is_primary: bool, resume: bool) -> None:
        self.folder = folder
        self._is_primary = is_primary
        self._tracker = Trackers()
        self._step = 0
        self._images_per_step = 0
        self._bar: Optional[tqdm] = None
        self._aside = Aside()
        self._metrics = MetricsLog(folder.metrics)
        if is_primary:
            folder.acquire(resume)
            remove_partial_files(folder.checkpoints)
            for path in partial_files(folder.path):
                path.unlink()

    def __enter__(self) -> "RunOutput":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._settle_quietly()
        if self._bar is not None:
            self._bar.close()
        self._tracker.close()
        self.folder.release()

    def start(
        self,
        config_text: str,
        build_tracker: Callable[[Iterable[Record]], Trackers],
        *,
        step: int,
        evaluated_step: int,
        steps: int,
        images_per_step: int,
    ) -> None:
        """Begin at `step` of `steps`. Records after it are of a future that this run left by resuming: they go.

        Args:
            config_text: the complete configuration, for config.yaml.
            build_tracker: makes, out of the records that stay, what receives every later one too.
            step: weight updates done.
            evaluated_step: the last step whose evaluation is done.
            steps: of the whole run.
            images_per_step: of all processes.
        """
        self._step, self._images_per_step = step, images_per_step
        if self._is_primary:
            replace_text(self.folder.config, config_text)
            self._metrics.truncate_after(step, evaluated_step)
            self._tracker = build_tracker(self._metrics.records())
            write_status(self.folder.status, "running", f"from step {step}", None, step)
            # On a terminal only: in a log file the lines of `say` tell the same.
            self._bar = tqdm(
                total=steps * images_per_step,
                initial=step * images_per_step,
                unit=" images",
                unit_scale=True,
                disable=None,
                smoothing=0.02,
            )

    def write_aside(self, write: Callable[[], object]) -> None:
        """Write a checkpoint while the training goes on, after the one before.

        Raises:
            Exception: the error of the one before.
        """
        self._aside.start(write)

    def settle(self) -> None:
        """Wait until all is on the disk.

        Raises:
            Exception: the error of what was not written.
        """
        self._aside.wait()

    def _settle_quietly(self) -> None:
        try:
            self._aside.wait()
        except Exception as error:  # the run ends with an error already, whose message matters more
            logger.warning("the last checkpoint was not written: %s", error)

    def advance(self, step: int) -> None:
        """Count up to `step` finished weight updates.

        Raises:
            Exception: the error of a checkpoint that could not be written.
        """
        self._aside.check()
        if self._bar is not None:
            self._bar.update((step - self._step) * self._images_per_step)
        self._step = step

    def record(
        self,
        split: str,
        epoch: float,
        sums: StepSums,
        images_per_second: float,
        *,
        learning_rate: Optional[float] = None,
        gradient_norm: Optional[float] = None,
    ) -> None:
        """Write one record to metrics.jsonl and the tracker, and the step to status.json.

        Raises:
            RunFolderGoneError, OSError: as said.
        """
        if self._is_primary:
            self.folder.check_there()
            record = self._metrics.append(
                split=split,
                step=self._step,
                epoch=epoch,
                means=sums.means(),
                images_per_second=images_per_second,
                learning_rate=learning_rate,
                gradient_norm=gradient_norm,
            )
            self._tracker.log(record)
            write_status(self.folder.status, "running", f"at epoch {epoch:.2f}", None, self._step)

    def show(self, position: str, results: str, speed: str, *, is_line: bool) -> None:
        """Where the training is: beside the progress bar on a terminal, else as one line.

        Args:
            position: step and epoch, in words.
            results: loss and top-1, in words.
            speed: and time left, in words.
            is_line: false: no line is wanted now, since another one follows that says as much.
        """
        if self._bar is None:
            return
        if not self._bar.disable:
            self._bar.set_description_str(position, refresh=False)
            self._bar.set_postfix_str(results, refresh=False)
        elif is_line:
            self.say(f"{position}  {results} | {speed}")

    def track(self, record: Record) -> None:
        """Send one record of an observer to the trackers."""
        if self._is_primary:
            self._tracker.log(record)

    def say(self, line: str) -> None:
        """Print one line above the progress bar."""
        if self._is_primary and sys.stdout is not None:
            try:
                tqdm.write(line, file=sys.stdout)
                sys.stdout.flush()
            except (OSError, ValueError):  # closed, as after `| head`: a run goes on without its console
                sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  as long as the process

    def set_aside_summary(self, name: str) -> None:
        """Keep the result of the shorter run, which is now extended, under another name."""
        if self._is_primary and self.folder.summary.exists():
            replace_file(self.folder.path / name, read_bounded(self.folder.summary, MAX_LOG_BYTES))
            self.folder.summary.unlink()

    def finish(self, summary: Dict[str, Any]) -> None:
        """Write the result of the finished run."""
        self.settle()
        if self._is_primary:
            write_summary(self.folder.summary, summary)
            self.ended("done", f"all {counted(self._step, 'step')}", 0)
        if self._bar is not None:
            self._bar.close()

    def lost(self, reason: str, exit_code: int) -> None:
        """Another process of the run is gone. If that is the primary, this one says in its place how the run ended."""
        if not self._is_primary and self.folder.inherit():
            self._is_primary = read_state(self.folder.status) == "running"
        self.ended("failed", reason, exit_code)

    def ended(self, state: str, reason: str, exit_code: int) -> None:
        """Why the run ended, for users and launchers: status.json."""
        self._settle_quietly()
        if self._is_primary:
            try:
                write_status(self.folder.status, state, reason, exit_code, self._step)
            except OSError as error:  # the disk that ended the run, perhaps: its own message matters more
                logger.warning("%s cannot be written: %s", self.folder.status, error)
