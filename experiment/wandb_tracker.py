"""Sends the records of a run to Weights & Biases: one run there for one run folder, however often it is resumed."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, Dict, Mapping

from configs.atomic_file import replace_file
from configs.bounded_file import KIB, read_bounded
from configs.passwords import hide_passwords
from configs.schema import Config

INIT_TIMEOUT_SECONDS = 20.0  # wandb's own default is 90, which a run without network would wait
FINISH_TIMEOUT_SECONDS = 60.0  # wandb itself waits for ever for a server that has fallen silent
ID_FILE = "wandb_id.txt"
_ID = re.compile(r"[a-z0-9]{8,32}")

logger = logging.getLogger(__name__)


class WandbTracker:
    """Logs records to wandb, online or offline as `run.wandb` says.

    Args:
        config: of the run; wandb gets all of it, without passwords.
        folder: where wandb keeps its files.
        name: of the run.
    """

    def __init__(self, config: Config, folder: Path, name: str) -> None:
        wandb = importlib.import_module("wandb")
        keep_threads_quiet()
        settings: Dict[str, Any] = {"init_timeout": INIT_TIMEOUT_SECONDS}
        settings.update(finish_timeout=FINISH_TIMEOUT_SECONDS, finish_timeout_raises=True)
        if any(hide_passwords(argument) != argument for argument in sys.argv):
            settings["x_disable_meta"] = True  # wandb would note the whole command
        resumed = {} if config.run.wandb == "offline" else {"resume": "allow"}  # offline it warns, and joins by the id
        try:
            self._run = wandb.init(
                mode=config.run.wandb,
                project=config.run.wandb_project,
                name=name,
                id=run_id(folder),
                **resumed,
                dir=str(folder),
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(**settings),
            )
        except Exception:
            # wandb's own process tries for ten seconds more to report its end: beside the training, not after it.
            threading.Thread(target=_end_service).start()
            raise

    def log(self, record: Mapping[str, Any]) -> None:
        """Log one record under its split's name."""
        numbers = {f"{record['split']}/{key}": value for key, value in record.items() if key not in ("split", "step")}
        self._run.log(numbers, step=record["step"])

    def close(self) -> None:
        """Flush what is left."""
        self._run.finish()


def run_id(folder: Path) -> str:
    """Return wandb's id for a folder's run, kept in ID_FILE: made at its first start, the same after --resume."""
    path = folder / ID_FILE
    if path.exists():
        found = read_bounded(path, KIB).decode("ascii", errors="replace").strip()
        if _ID.fullmatch(found):
            return found
    made = os.urandom(8).hex()
    replace_file(path, f"{made}\n".encode("ascii"))
    return made


def keep_threads_quiet() -> None:
    """From now on an error that ends one of wandb's own threads goes to the log as a detail, not to the terminal.

    Such a thread may lose its connection while wandb is ended after a failure, which the run has reported.
    """
    previous = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        modules = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(args.exc_traceback))
        if any(module.partition(".")[0] == "wandb" for module in modules):
            logger.debug("a thread of wandb ended with %s: %s", args.exc_type.__name__, args.exc_value)
        else:
            previous(args)

    threading.excepthook = hook


def _end_service() -> None:
    with contextlib.suppress(Exception):  # whoever catches the failure above tells of it
        importlib.import_module("wandb").teardown()
