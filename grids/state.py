"""Where one run of a grid stands: done, missing, changed, or waiting for a learning-rate check."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional

from typing_extensions import Literal

from configs import Config
from configs.yaml_file import read_yaml
from experiment.run_folder import RunFolder
from grids.plan import Plan, Trial
from grids.rates import RateCheckError, choose_rate
from grids.results import Results, why_changed


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Attributes:
        kind: "changed" where its result, or its unfinished run, has another configuration; "waits" where its learning
            rate is not known yet.
        reasons: what changed, or what it waits for.
        factor: of the experiment's learning rate; None leaves it.
        config: what it is trained with; None while it waits.
        learning_rate: the record of the rate's choice.
    """

    kind: Literal["done", "missing", "changed", "waits"]
    reasons: List[str] = field(default_factory=list)
    factor: Optional[float] = None
    config: Optional[Config] = None
    learning_rate: Dict[str, Any] = field(default_factory=dict)


def state_of(trial: Trial, plan: Plan, results: Results, folder: RunFolder) -> State:
    """Return the state of `trial`, by its result, or by the folder of its unfinished run."""
    factor, record = trial.factor, {"factor": trial.factor} if trial.is_check else {}
    if not trial.is_check:
        try:
            factor, record = choose_rate(plan, trial.cell, results)
        except RateCheckError as error:
            return State("waits", [str(error)])
    config = trial.cell.config(trial.seed, factor)
    result = results.read(trial)
    saved = _config_of(folder) if result is None else result["config"]
    reasons = [] if saved is None else why_changed(saved, config)
    kind = "changed" if reasons else "missing" if result is None else "done"
    return State(kind, reasons, factor, config, record)  # type: ignore[arg-type]  # mypy widens the conditional


def _config_of(folder: RunFolder) -> Optional[Dict[str, Any]]:
    """Of the run that `folder` holds, whether it was finished or not."""
    is_begun = folder.config.exists() and any(folder.checkpoints.glob("step_*"))
    return read_yaml(folder.config)[0] if is_begun else None


def folder_of(trial: Trial, runs: Path) -> RunFolder:
    """Where `trial` is trained."""
    return RunFolder(runs / trial.file_name)
