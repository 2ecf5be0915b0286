"""Writes the records of a run for TensorBoard.

tensorboard --logdir runs
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Iterable, Mapping

from configs.errors import ConfigError


class TensorBoardTracker:
    """Writes each number of a record as SPLIT/NAME over steps. Numbers that are not finite leave a gap.

    Args:
        folder: for the event files; emptied first.
        past: records to write first.
    """

    def __init__(self, folder: Path, past: Iterable[Mapping[str, Any]]) -> None:
        if folder.is_symlink():  # others may have planted it: what is removed here would be somebody's
            raise OSError(f"{folder} is a symbolic link, which is not followed; remove it")
        for stale in folder.glob("events.out.tfevents.*"):
            stale.unlink()  # the records have all that it says
        self._writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter(str(folder))
        for record in past:
            self.log(record)
        self._writer.flush()

    def log(self, record: Mapping[str, Any]) -> None:
        """Log one record under its split's name."""
        for key, value in record.items():
            if key not in ("split", "step") and value is not None:
                self._writer.add_scalar(f"{record['split']}/{key}", value, record["step"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def require_tensorboard() -> None:
    """Check that TensorBoard's writer can be imported.

    Raises:
        ConfigError: it cannot.
    """
    try:
        importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise ConfigError(
            f"run.tensorboard true needs the package tensorboard, which cannot be imported ({error}); "
            "pip install tensorboard, or remove it"
        ) from error
