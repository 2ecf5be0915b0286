"""Sends the metric records to Weights & Biases, which a run never needs: a failure costs one warning."""

from __future__ import annotations

import contextlib
import importlib
import logging
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Optional

from configs.passwords import hide_passwords
from configs.schema import Config

logger = logging.getLogger(__name__)

INIT_TIMEOUT_SECONDS = 20.0  # wandb's own default is 90, which a run without network would wait
FINISH_TIMEOUT_SECONDS = 60.0  # wandb itself waits for ever for a server that has fallen silent


class Tracker:
    """Logs records to wandb when `run.wandb` is online or offline; does nothing when it is off or wandb has failed."""

    def __init__(self, config: Config, folder: Path, name: str, is_primary: bool) -> None:
        self._run: Optional[Any] = None
        if config.run.wandb == "off" or not is_primary:
            return
        try:
            wandb = importlib.import_module("wandb")
            settings: Dict[str, Any] = {"init_timeout": INIT_TIMEOUT_SECONDS}
            settings.update(finish_timeout=FINISH_TIMEOUT_SECONDS, finish_timeout_raises=True)
            if any(hide_passwords(argument) != argument for argument in sys.argv):
                settings["x_disable_meta"] = True  # wandb would note the whole command
            self._run = wandb.init(
                mode=config.run.wandb,
                project=config.run.wandb_project,
                name=name,
                dir=str(folder),
                config=config.model_dump(mode="json"),
                settings=wandb.Settings(**settings),
            )
        except Exception as error:  # wandb raises many types; none of them may stop a training run
            self._give_up("starting", error)
            # wandb's own process tries for ten seconds more to report its end: beside the training, not after it.
            threading.Thread(target=_end_service).start()

    def log(self, record: Dict[str, Any]) -> None:
        """One record of metrics.jsonl, under its split's name."""
        if self._run is None:
            return
        numbers = {f"{record['split']}/{key}": value for key, value in record.items() if key not in ("split", "step")}
        try:
            self._run.log(numbers, step=record["step"])
        except Exception as error:  # as above
            self._give_up("logging", error)

    def close(self) -> None:
        """Flushes what is left."""
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:  # as above
            self._give_up("finishing", error)

    def _give_up(self, doing: str, error: Exception) -> None:
        self._run = None
        logger.warning(
            "wandb failed while %s (%s: %s); training goes on without it", doing, type(error).__name__, error
        )


def _end_service() -> None:
    with contextlib.suppress(Exception):  # the warning is given
        importlib.import_module("wandb").teardown()
