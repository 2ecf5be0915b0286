"""What looks at a run while it trains and changes nothing in it: objects called after each epoch and at the end."""

from __future__ import annotations

import logging
from typing import Any, List, Mapping, Sequence

from typing_extensions import Protocol

from analysis.curves import plot_curves
from analysis.settings import read_settings, run_title
from experiment.run_output import RunOutput

LOGGER = logging.getLogger(__name__)
Record = Mapping[str, Any]


class Observer(Protocol):
    """One view of a run. Every process calls all of its methods, and those of all observers in the same order."""

    def resume(self, step: int, evaluated_step: int) -> List[Record]:
        """Continue at `step`, whose epoch is finished if it is `evaluated_step` too.

        Later records are removed, and the others returned in the form that trackers have.
        """

    def after_epoch(self, epoch: int) -> None:
        """`epoch` epochs are done, 0 before the first step; between two calls of the device."""

    def at_end(self, title: str) -> None:
        """Finish, once the run is done and its summary written; called in the primary process only.

        Args:
            title: of its pictures.

        Raises:
            Exception: a picture cannot be written.
        """


class Observers:
    """All observers of a run.

    Args:
        observers: in the order in which they are called.
        name: of the run.
        output: of the run.
        is_primary: whether this process draws.
    """

    def __init__(self, observers: Sequence[Observer], name: str, output: RunOutput, is_primary: bool) -> None:
        self._observers, self._name, self._output, self._is_primary = observers, name, output, is_primary

    def resume(self, step: int, evaluated_step: int) -> List[Record]:
        return [record for each in self._observers for record in each.resume(step, evaluated_step)]

    def after_epoch(self, epoch: int) -> None:
        for observer in self._observers:
            observer.after_epoch(epoch)

    def at_end(self) -> None:
        """Finish the observers; a picture that fails costs a warning: the run is done, and its result written."""
        if not self._is_primary:
            return
        folder = self._output.folder
        try:
            title = run_title(self._name, read_settings(folder.config))
            for observer in self._observers:
                observer.at_end(title)
        except Exception as error:  # of the disk, of the drawing library, of files that somebody changed meanwhile
            LOGGER.warning(
                "the pictures cannot be written: %s; draw them with `python analyze.py curves %s`", error, folder.path
            )


class Curves:
    """Draws curves.png of metrics.jsonl. An `Observer`.

    Args:
        output: of the run.
    """

    def __init__(self, output: RunOutput) -> None:
        self._folder = output.folder

    def resume(self, step: int, evaluated_step: int) -> List[Record]:
        return []

    def after_epoch(self, epoch: int) -> None:
        pass

    def at_end(self, title: str) -> None:
        plot_curves(self._folder.metrics, self._folder.curves, title)
