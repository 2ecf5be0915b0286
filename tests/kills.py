"""A run killed at random moments again and again.

    python tests/kills.py --count 100

Each round trains one run, kills it with SIGKILL wherever it happens to be, resumes it until it is done, and compares
weights, optimizer state, averaged weights and records with those of a run that nobody killed: to the bit. A checkpoint
is written after every weight update, so that many kills fall into that; one in five falls into the start. Processes
are forked from one that has imported torch already, which makes a start take about a second.

The log keeps a line for each kill and each round; the same command goes on from there. The exit code is 1 if the
result of a round differs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

from real_runs import assert_same_result, newest_step, run  # noqa: E402

EPOCHS = 40
STEPS = 4 * EPOCHS
SETTINGS = [f"schedule.epochs={EPOCHS}", "run.checkpoint_every_steps=1", "data.num_eval_images=9"]
SETTINGS += ["averaging.every=step", "averaging.decay=0.9"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="kills in the log at the end")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "kills", help="for runs and log")
    options = parser.parse_args()
    for module in ("torch._dynamo", "matplotlib.pyplot"):  # once for all forked processes
        importlib.import_module(module)
    log = KillLog(options.folder)
    kill_again_and_again(log, options.count)
    print(f"{log.kills} kills of {log.rounds} whole runs, {log.different} of them with another result")
    return 1 if log.different else 0


class KillLog:
    """log.jsonl of a folder: a line {"kill", "step"} for each kill, {"round", "same"} for each finished round."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._path = folder, folder / "log.jsonl"

    def add(self, **row: Any) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _rows(self, kind: str) -> List[Dict[str, Any]]:
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        return [row for row in map(json.loads, lines) if kind in row]

    @property
    def kills(self) -> int:
        return len(self._rows("kill"))

    @property
    def rounds(self) -> int:
        return len(self._rows("round"))

    @property
    def different(self) -> int:
        return sum(not row["same"] for row in self._rows("round"))


class Started:
    """A run that goes on from its newest checkpoint, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.output = folder.parent / "output.txt"
        self._code: Optional[int] = None
        self._id = os.fork()
        if self._id == 0:
            code = 1
            try:
                descriptor = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                code = run(folder, "--resume", *[word for setting in SETTINGS for word in ("--set", setting)])
            finally:
                os._exit(code)

    def ended(self, options: int = os.WNOHANG) -> Optional[int]:
        """Its exit code, negative for a signal; None while it goes on."""
        if self._code is None:
            process, status = os.waitpid(self._id, options)
            if process:
                self._code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        return self._code

    def kill(self) -> bool:
        """Whether it was killed; false if it had ended before."""
        if self.ended() is None:
            os.kill(self._id, signal.SIGKILL)
        return self.ended(0) == -signal.SIGKILL


def kill_again_and_again(log: KillLog, count: int) -> None:
    """Round until the log has `count` kills and the last round is compared.

    Raises:
        RuntimeError: a run ends otherwise than killed or done, or a kill took a checkpoint.
    """
    straight, killed = log.folder / "straight", log.folder / "killed"
    finish(straight)
    while log.kills < count or killed.exists():
        while log.kills < count and kill_once(killed, log):
            pass
        finish(killed)
        try:
            assert_same_result(straight, killed, STEPS)
            log.add(round=log.rounds, same=True)
        except AssertionError as error:
            killed.rename(log.folder / f"different{log.rounds}")
            log.add(round=log.rounds, same=False, difference=str(error)[:1000])
        shutil.rmtree(killed, ignore_errors=True)


def kill_once(folder: Path, log: KillLog) -> bool:
    """Whether the run was killed; it may have ended before."""
    chance, before, began = random.Random(log.kills), newest_step(folder), time.monotonic()
    process = Started(folder)
    if log.kills % 5 == 4:  # while it starts, which may take a second
        moment = chance.random()
        while process.ended() is None and time.monotonic() - began < moment and newest_step(folder) == before:
            time.sleep(0.002)
    else:
        aim = before + chance.randrange(1, 1 + STEPS // 12)
        while process.ended() is None and newest_step(folder) < aim:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
    if not process.kill():
        check_done(process)
        return False
    if newest_step(folder) < before:
        raise RuntimeError(f"a kill took the checkpoint of step {before}: the newest is of step {newest_step(folder)}")
    log.add(kill=log.kills, step=newest_step(folder))
    return True


def finish(folder: Path) -> None:
    process = Started(folder)
    process.ended(0)
    check_done(process)


def check_done(process: Started) -> None:
    if process.ended() != 0:
        raise RuntimeError(f"the run ended with code {process.ended()}:\n{process.output.read_text()}")


if __name__ == "__main__":
    sys.exit(main())
