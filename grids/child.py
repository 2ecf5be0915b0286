"""One run of a grid as a process of train.py."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import List, Optional

from configs.bounded_file import open_regular, parse_json
from experiment.run_folder import RunFolder
from grids.plan import Trial
from grids.state import State
from training.parents_end import end_with

TRAIN = Path(__file__).resolve().parent.parent / "train.py"
CONSOLE = "console.log"
_TAIL_BYTES = 4096


class Child:
    """Trains `trial` in `folder`, going on where an earlier process stopped; its console is the folder's console.log.

    It has a session of its own, so that Ctrl-C reaches the runner alone, and ends, saving, where the runner is killed.

    Args:
        state: what it is trained with.
        lock: a descriptor that it keeps open for as long as it lives.
    """

    def __init__(self, trial: Trial, state: State, folder: RunFolder, lock: int) -> None:
        assert state.config is not None, "a run that waits cannot start"
        self.trial = trial
        self.state = state
        self.folder = folder
        self._epochs = state.config.schedule.epochs
        self.first_share = self.share_done()
        self._started = time.monotonic()
        folder.path.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(TRAIN), "--config", trial.cell.experiment, "--output-dir", str(folder.path)]
        for override in trial.cell.all_overrides(trial.seed, state.factor):
            command += ["--set", override]
        with open(folder.path / CONSOLE, "ab") as console:
            self._process = subprocess.Popen(
                [*command, "--resume"],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
                pass_fds=(lock,),
                # The runner has no other thread that could hold a lock.
                preexec_fn=functools.partial(end_with, os.getpid(), signal.SIGTERM),  # noqa: PLW1509
            )

    def exit_code(self) -> Optional[int]:
        """None while it runs; below zero, the signal that ended it."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to save and end."""
        if self._process.poll() is None:
            self._process.terminate()

    @property
    def minutes(self) -> float:
        return (time.monotonic() - self._started) / 60

    def share_done(self) -> float:
        """Of its epochs, from 0 to 1, by the newest training record."""
        lines = _last_lines(self.folder.metrics)
        for line in reversed(lines):
            try:
                return min(1.0, parse_json(line)["epoch"] / self._epochs)
            except (ValueError, TypeError, KeyError):  # the first line may be cut, the last half written
                continue
        return 0.0

    def last_words(self) -> str:
        """Return the error that its console ends with, or its last line."""
        lines = [line for line in _last_lines(self.folder.path / CONSOLE) if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["it printed nothing"])[-1].replace("error: ", "", 1)


def _last_lines(path: Path) -> List[str]:
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode("utf-8", "replace").splitlines()
    except OSError:  # not there yet
        return []
