"""The learning-rate check: which factor of the experiment's rate a row is trained with."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from grids.plan import Cell, Plan
from grids.results import Results

RULE = (
    "lowest mean training loss of the last epoch, one seed that is not evaluated; no test image takes part. A run "
    "whose loss was not finite counts as infinite; of equals the factor nearest 1 wins"
)


class RateCheckError(Exception):
    """No learning rate could be chosen. The message says why."""


def choose_rate(plan: Plan, cell: Cell, results: Results) -> Tuple[Optional[float], Dict[str, Any]]:
    """Return the factor for the runs of `cell`, and the record of the choice. (None, {}) where nothing is checked.

    Raises:
        RateCheckError: a check that has no result, and checks that all diverged.
    """
    checks = plan.checks_for(cell)
    if not checks:
        return None, {}
    losses: Dict[float, Optional[float]] = {}
    for trial in checks:
        result = results.read(trial)
        if result is None:
            raise RateCheckError(f"{trial} has no result")
        assert trial.factor is not None
        losses[trial.factor] = None if result["summary"] is None else result["train_loss"]
    finite: List[Tuple[float, float, float]] = [
        (loss, max(factor, 1 / factor), factor) for factor, loss in losses.items() if loss is not None
    ]
    if not finite:
        raise RateCheckError(f"every run of the learning-rate check of {checks[0].cell} diverged")
    factor = min(finite)[2]
    checked = {f"{factor:g}": loss for factor, loss in losses.items()}
    return factor, {"factor": factor, "checked_on": str(checks[0].cell), "training_losses": checked, "rule": RULE}
