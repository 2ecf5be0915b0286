"""Runs of different seeds as the rows of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Sequence, Tuple

from analysis.comparison.run_result import RunResult
from analysis.results_file import ResultsError
from analysis.settings import differing_settings, network_of, settings_texts

BY_NAME = "name"
# What does not say what a run is, besides section run: where images lie and who reads them.
_NOT_MEANT = ("data.dir", "data.cache_dir", "data.workers")


@dataclass(frozen=True)
class Row:
    """The runs of one row, which differ in their seeds.

    Args:
        name: of the row.
        column: of the grid, or "".
        runs: by seed, none twice.
    """

    name: str
    column: str
    runs: Tuple[RunResult, ...]

    @property
    def title(self) -> str:
        return f"{self.name}, {self.column}" if self.column else self.name

    @property
    def pooled(self) -> List[str]:
        """The settings in which its runs differ, though they should differ in their seeds alone."""
        return differing_settings([_meant(run) for run in self.runs])

    def setting(self, key: str) -> Any:
        """Return the value of "section.key", which all runs of a row share.

        Raises:
            ResultsError: one that they do not share, or that their configurations do not have.
        """
        if any(key not in run.settings for run in self.runs):
            raise ResultsError(f"{self.title}: its configurations have no {key}")
        values = {repr(run.settings[key]) for run in self.runs}
        if len(values) > 1:
            raise ResultsError(f"{self.title}: its runs have {key} {', '.join(sorted(values))}; one value is needed")
        return self.runs[0].settings[key]


def group_runs(results: Sequence[RunResult], keys: Sequence[str] = ()) -> List[Row]:
    """Return the rows that runs form, in order of their first runs.

    Args:
        results: of the runs.
        keys: of settings that tell rows apart; ("name",): rows of grids and experiments by their names alone. Left
            out: by name, and where runs of one name differ in more than their seeds, by those settings too.

    Raises:
        ResultsError: an unknown key, or two runs of one seed in a row.
    """
    by_name: Dict[Tuple[str, str], List[RunResult]] = {}
    for run in results:
        by_name.setdefault(("", run.column) if keys and keys != (BY_NAME,) else (run.row, run.column), []).append(run)
    rows: List[Row] = []
    for (name, column), runs in by_name.items():
        told_apart = _told_apart(runs, keys)
        groups: Dict[str, List[RunResult]] = {}
        for run in runs:
            label = ", ".join([name] * bool(name) + settings_texts(run.settings, told_apart)) or network_of(
                run.settings
            )
            groups.setdefault(label, []).append(run)
        rows += [Row(label, column, _by_seed(label, group)) for label, group in groups.items()]
    return rows


def _told_apart(runs: List[RunResult], keys: Sequence[str]) -> List[str]:
    if keys == (BY_NAME,):
        return []
    for key in keys:
        if not any(key in run.settings for run in runs):
            raise ResultsError(f"--group-by {key}: no run has this setting; write section.key, e.g. norm.name, or name")
    return list(keys) or differing_settings([_meant(run) for run in runs])


def _meant(run: RunResult) -> Dict[str, Any]:
    return {key: value for key, value in run.settings.items() if key not in _NOT_MEANT and not key.startswith("run.")}


def _by_seed(label: str, runs: Iterable[RunResult]) -> Tuple[RunResult, ...]:
    by_seed: Dict[int, RunResult] = {}
    for run in runs:
        other = by_seed.setdefault(run.seed, run)
        if other is not run:
            raise ResultsError(
                f"row {label} has two runs of seed {run.seed}, {other.source} and {run.source}; leave one out, or name "
                "the settings that tell them apart with --group-by"
            )
    return tuple(by_seed[seed] for seed in sorted(by_seed))
