"""Runs what is missing of a grid: as many processes as asked for, learning-rate checks first, then seed by seed."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List

from experiment.stop_signals import StopSignals
from grids.bar import Bar
from grids.child import Child
from grids.console import say
from grids.plan import Plan, Trial
from grids.results import Results
from grids.state import State, folder_of, state_of

DIVERGED = 5  # train.py's exit code for a loss that is not finite
POLL_SECONDS = 0.2
_REASONS_SHOWN = 3


@dataclass
class Outcome:
    """How the runs ended: `failed` holds the reasons, `stopped_by` the signal that ended it, or 0."""

    done: int = 0
    failed: Dict[Trial, str] = field(default_factory=dict)
    stopped_by: int = 0

    @property
    def ended(self) -> int:
        return self.done + len(self.failed)


class Runner:
    """Runs the trials of `plan` that have no result.

    Args:
        runs: the folder of the runs' folders.
        rerun: runs whose configuration changed are run again, instead of refused.
        keep_checkpoints: of finished runs.
    """

    def __init__(
        self, plan: Plan, results: Results, runs: Path, *, rerun: bool = False, keep_checkpoints: bool = False
    ) -> None:
        self._plan = plan
        self._results = results
        self._runs = runs
        self._rerun = rerun
        self._keep_checkpoints = keep_checkpoints
        self._running: List[Child] = []
        self._outcome = Outcome()
        self._gained = 0.0

    def run(self, trials: List[Trial], jobs: int, lock: int) -> Outcome:
        """Until all of `trials` ended; stopped by a signal, the runs under way save and end first.

        Args:
            trials: to do.
            jobs: runs at a time.
            lock: a descriptor that the runs keep open.
        """
        waiting, outcome = list(trials), self._outcome
        with StopSignals() as signals, Bar(len(trials)) as bar:
            while self._running or (waiting and not signals.received):
                if signals.received and not outcome.stopped_by:
                    outcome.stopped_by = signals.received
                    say(
                        "stopping: runs in progress are saving. The same command continues; a second signal ends at "
                        "once"
                    )
                    for child in self._running:
                        child.stop()
                while not signals.received and len(self._running) < jobs and self._take_next(waiting, lock, bar):
                    pass
                time.sleep(POLL_SECONDS)
                for child in [child for child in self._running if child.exit_code() is not None]:
                    self._running.remove(child)
                    self._finish(child, bar)
                under_way = sum(child.share_done() for child in self._running)
                gained = self._gained + under_way - sum(child.first_share for child in self._running)
                bar.show(outcome.ended + under_way, gained)
            outcome.stopped_by = signals.received
        return outcome

    def _take_next(self, waiting: List[Trial], lock: int, bar: Bar) -> bool:
        """Start the first run that can start, or settles one that need not or cannot; false if there is none."""
        for trial in waiting:
            folder = folder_of(trial, self._runs)
            state = state_of(trial, self._plan, self._results, folder)
            if state.kind == "waits" and self._is_awaited(trial, waiting):
                continue
            waiting.remove(trial)
            if state.kind == "done":
                self._outcome.done += 1
            elif state.kind == "waits":
                self._fail(trial, "; ".join(state.reasons), bar)
            elif state.kind == "changed" and not self._rerun:
                self._fail(trial, f"{changed_text(state)}; --rerun runs it again", bar)
            else:
                if state.kind == "changed":
                    shutil.rmtree(folder.path, ignore_errors=True)
                self._results.path(trial).unlink(missing_ok=True)
                self._running.append(Child(trial, state, folder, lock))
            return True
        return False

    def _is_awaited(self, trial: Trial, waiting: List[Trial]) -> bool:
        """Whether a learning-rate check that `trial` needs is still to end."""
        under_way = {*waiting, *(child.trial for child in self._running)}
        return any(check in under_way for check in self._plan.checks_for(trial.cell))

    def _finish(self, child: Child, bar: Bar) -> None:
        code, trial = child.exit_code(), child.trial
        if code not in (0, DIVERGED):
            if not self._outcome.stopped_by:
                self._fail(trial, f"exit code {code}: {child.last_words()}", bar)
            return
        assert child.state.config is not None
        try:
            result = self._results.write(
                trial, child.state.config, child.folder, child.state.learning_rate, diverged=code == DIVERGED
            )
        except (ValueError, KeyError, TypeError) as error:  # its files are not what a run of this grid writes
            reason = f"{child.folder.path} holds no result of this run ({type(error).__name__}: {error}); remove it"
            self._fail(trial, reason, bar)
            return
        self._gained += 1 - child.first_share
        self._outcome.done += 1
        if not self._keep_checkpoints:
            shutil.rmtree(child.folder.checkpoints, ignore_errors=True)
        said = "loss not finite" if result["summary"] is None else f"top1 {result['summary']['top1']:.4f}"
        bar.ended(self._outcome.ended, f"{trial}: {said}, {child.minutes:.1f} min")

    def _fail(self, trial: Trial, reason: str, bar: Bar) -> None:
        self._outcome.failed[trial] = reason
        bar.ended(self._outcome.ended, f"{trial}: FAILED, {reason}")


def changed_text(state: State) -> str:
    """Return what changed since the result, in one line."""
    shown = "; ".join(state.reasons[:_REASONS_SHOWN])
    more = len(state.reasons) - _REASONS_SHOWN
    return f"its configuration changed: {shown}" + (f" and {more} more" if more > 0 else "")
