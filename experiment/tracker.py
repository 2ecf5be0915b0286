"""Where the records of a run go besides metrics.jsonl: wandb, TensorBoard and a CSV file, as section `run` says.

TensorBoard's folder and the CSV file are rewritten from the records at each start, and appended to from then on. So
they hold what metrics.jsonl holds: a run that is resumed continues them, without a gap and without a record twice.
"""

from __future__ import annotations

import logging
from typing import Any, Callable, Iterable, List, Mapping, Optional, Sequence

from typing_extensions import Protocol

from configs import Config
from experiment.csv_tracker import CsvTracker
from experiment.run_folder import RunFolder
from experiment.tensorboard_tracker import TensorBoardTracker, require_tensorboard
from experiment.wandb_tracker import WandbTracker

logger = logging.getLogger(__name__)
Record = Mapping[str, Any]


class Tracker(Protocol):
    """Something that is given every record of metrics.jsonl and power.jsonl."""

    def log(self, record: Record) -> None:
        """Log one record, with its split and step; the rest are numbers."""

    def close(self) -> None:
        """Write what is left."""


class Trackers:
    """Several trackers as one.

    Args:
        trackers: what each record goes to.
    """

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = trackers

    def log(self, record: Record) -> None:
        for tracker in self._trackers:
            tracker.log(record)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


class DispensableTracker:
    """A tracker that a run can do without: its first failure costs a warning, and ends it.

    Args:
        name: for the warning.
        build: makes the tracker.
    """

    def __init__(self, name: str, build: Callable[[], Tracker]) -> None:
        self._name = name
        self._tracker: Optional[Tracker] = None
        self._tracker = self._attempt("starting", build)

    def log(self, record: Record) -> None:
        if self._tracker is not None:
            tracker = self._tracker
            self._attempt("logging", lambda: tracker.log(record))

    def close(self) -> None:
        if self._tracker is not None:
            self._attempt("finishing", self._tracker.close)

    def _attempt(self, doing: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # many types; none of them may stop a training run
            self._tracker = None
            logger.warning(
                "%s failed while %s (%s: %s); training goes on without it",
                *(self._name, doing, type(error).__name__, error),
            )
            return None


def check_trackers(config: Config) -> None:
    """Check that the packages that trackers need are there: before the training, not after it.

    Raises:
        ConfigError: one is missing.
    """
    if config.run.tensorboard:
        require_tensorboard()


def build_trackers(config: Config, folder: RunFolder, name: str, past: Iterable[Record]) -> Trackers:
    """Return the trackers that section `run` asks for.

    Args:
        config: of the run.
        folder: of the run.
        name: of the run.
        past: records that the run folder holds already.
    """
    records = list(past)
    trackers: List[Tracker] = []
    if config.run.csv:
        trackers.append(CsvTracker(folder.csv, records))
    if config.run.tensorboard:
        trackers.append(
            DispensableTracker("TensorBoard's writer", lambda: TensorBoardTracker(folder.tensorboard, records))
        )
    if config.run.wandb != "off":
        trackers.append(DispensableTracker("wandb", lambda: WandbTracker(config, folder.path, name)))
    return Trackers(trackers)
