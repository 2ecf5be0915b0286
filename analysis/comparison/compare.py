"""Rows beside each other: mean and deviation over seeds, and differences paired by seed to one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np

from analysis.comparison.bootstrap import (
    COVERAGE,
    NUM_RESAMPLES,
    Interval,
    bca_interval,
    sign_flip_p,
    smallest_p,
    standard_deviation,
)
from analysis.comparison.metric import Metric
from analysis.comparison.rows import Row
from analysis.results_file import ResultsError
from analysis.settings import setting_text

ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """A row minus another, paired by seed.

    Args:
        against: the other row's title.
        by_seed: the differences of the seeds that both have.
        unpaired: seeds that one of the two has alone.
        interval: of their mean.
        p: of the sign-flip test; None without a seed in common.
    """

    against: str
    by_seed: Dict[int, float]
    unpaired: Tuple[int, ...]
    interval: Interval
    p: Optional[float]

    @property
    def mean(self) -> Optional[float]:
        return float(np.mean(list(self.by_seed.values()))) if self.by_seed else None

    @property
    def is_clear(self) -> bool:
        """The interval excludes zero, and p allows it: three seeds are never enough."""
        return self.interval.excludes_zero and self.p is not None and self.p <= ALPHA


@dataclass(frozen=True)
class Summary:
    """A row by one metric.

    Args:
        by_seed: value of each seed that has one.
        missing: seeds without, because it was not measured or is not finite; then there is no mean.
        interval: of the mean.
        difference: to the row compared with; None for that row itself, and without one.
    """

    row: Row
    by_seed: Dict[int, float]
    missing: Tuple[int, ...]
    interval: Interval
    difference: Optional[Difference] = None

    @property
    def mean(self) -> Optional[float]:
        return float(np.mean(list(self.by_seed.values()))) if self.by_seed and not self.missing else None

    @property
    def deviation(self) -> Optional[float]:
        return None if self.missing else standard_deviation(list(self.by_seed.values()))


@dataclass(frozen=True)
class Comparison:
    """All rows by one metric, and what must be said beside them."""

    metric: Metric
    summaries: Tuple[Summary, ...]
    against: str = ""
    pairs: Tuple[Tuple[str, str], ...] = ()

    @property
    def columns(self) -> List[str]:
        return list(dict.fromkeys(summary.row.column for summary in self.summaries))

    def of_column(self, column: str) -> List[Summary]:
        return [summary for summary in self.summaries if summary.row.column == column]

    def reference_of(self, summary: Summary) -> str:
        """Return the name of the row that this one is compared with; "" for none."""
        return dict(self.pairs).get(summary.row.name, self.against)

    def to_json(self) -> Dict[str, Any]:
        return {
            "metric": self.metric.label,
            "against": self.against,
            "pairs": [list(pair) for pair in self.pairs],
            "rows": [_summary_json(summary) for summary in self.summaries],
            "notes": notes_of(self),
        }


def compare_rows(
    rows: Sequence[Row], metric: Metric, against: str = "", pairs: Sequence[Tuple[str, str]] = ()
) -> Comparison:
    """Compare rows by `metric`, each with a row of its own column.

    Args:
        rows: of a table.
        metric: the figure to compare by.
        against: the name of the row that all are compared with; "" for none.
        pairs: (row, other): this row is compared with that other instead.

    Raises:
        ResultsError: an unknown row, a row that two pairs begin with, or a metric that no run has.
    """
    summaries = [_summarize(row, metric) for row in rows]
    if not any(summary.by_seed for summary in summaries):
        raise ResultsError(f"no run has a {metric.label}; choose another --metric")
    names = list(dict.fromkeys(row.name for row in rows))
    asked = [(f"--against {against}", against)] * bool(against)
    asked += [(f"--pair {' '.join(pair)}", name) for pair in pairs for name in pair]
    for option, name in asked:
        if name not in names:
            near = get_close_matches(name, names, n=3) or names
            raise ResultsError(f"{option}: no row is called {name}; {', '.join(near)}")
    if len(dict(pairs)) < len(pairs):
        raise ResultsError("--pair: a row is compared with one other; two pairs begin with the same row")
    alone = Comparison(metric, tuple(summaries), against, tuple(pairs))
    by_place = {(summary.row.name, summary.row.column): summary for summary in summaries}
    found = [by_place.get((alone.reference_of(each), each.row.column)) for each in summaries]
    return replace(alone, summaries=tuple(map(_against, summaries, found)))


def notes_of(comparison: Comparison) -> List[str]:
    """Return how to read the numbers, and what is not in them."""
    notes = _method_notes(comparison)
    titles: Dict[str, List[str]] = {}  # of the rows that the same must be said of
    for summary in comparison.summaries:
        for remark in _remarks(summary):
            titles.setdefault(remark, []).append(summary.row.title)
    notes += [f"{'; '.join(rows)}: {remark}" for remark, rows in titles.items()]
    notes += _rate_notes([summary.row for summary in comparison.summaries])
    places = {(summary.row.name, summary.row.column) for summary in comparison.summaries}
    for name in dict.fromkeys([comparison.against, *(other for _, other in comparison.pairs)]):
        without = [column for column in comparison.columns if (name, column) not in places]
        if name and without:
            notes.append(f"{name} is not in column {', '.join(without)}: there are no differences to it there.")
    return notes


def _rate_notes(rows: Sequence[Row]) -> List[str]:
    """Return which rows were trained with which learning rate, if they differ in it: a check may have chosen it."""
    rates = {row.title: _rates(row) for row in rows}
    of_name: Dict[str, Set[str]] = {}
    for row in rows:
        of_name.setdefault(row.name, set()).add(rates[row.title])
    titles: Dict[str, List[str]] = {}
    for row in rows:  # a row is named once where all columns have its rate
        titles.setdefault(rates[row.title], []).append(row.name if len(of_name[row.name]) == 1 else row.title)
    words = "; ".join(f"{rate} for {', '.join(dict.fromkeys(names))}" for rate, names in titles.items())
    return [f"Learning rates: {words}."] if len(titles) > 1 else []


def _rates(row: Row) -> str:
    return " and ".join(dict.fromkeys(setting_text(run.settings.get("optimizer.learning_rate")) for run in row.runs))


def _remarks(summary: Summary) -> Iterator[str]:
    """Yield what must be said about one row."""
    row, difference = summary.row, summary.difference
    if summary.missing:
        diverged = all(run.diverged for run in row.runs if run.seed in summary.missing)
        why = "the loss was not finite" if diverged else "not measured, or not finite,"
        yield f"{why} for {_seeds(summary.missing)}, so there is no mean."
    if row.pooled:
        yield f"its runs differ not in their seeds alone, but in {', '.join(row.pooled)}."
    if difference is not None and difference.unpaired and difference.by_seed:
        yield (
            f"{_seeds(difference.unpaired)} not in the difference to {difference.against}: only one of the two has "
            f"{'it' if len(difference.unpaired) == 1 else 'them'}."
        )
    if difference is not None and difference.interval.reason:
        yield f"no interval of the difference: {difference.interval.reason}."


def _method_notes(comparison: Comparison) -> List[str]:
    notes = ["sd: standard deviation over seeds, with n - 1."]
    differences = [difference for _, difference in _differences(comparison) if difference.by_seed]
    if not differences:
        return notes
    intervals = [difference.interval for difference in differences if not difference.interval.reason]
    counts = sorted({len(difference.by_seed) for difference in differences})
    if intervals:
        drawn = (
            ""
            if all(interval.is_exact for interval in intervals)
            else f", or {NUM_RESAMPLES:,} drawn with a fixed seed"
        )
        short = ", ".join(f"{100 * COVERAGE[count]:.0f} % with {count}" for count in counts if count in COVERAGE)
        notes.append(
            "Differences are paired by seed; in brackets the 95 % BCa bootstrap interval of their mean over seeds, "
            f"from all n^n resamples{drawn}."
            + (f" With few seeds it is too short: it covers the mean of normal values in {short}." if short else "")
        )
    least = ", ".join(f"{count}: {smallest_p(count):.3f}" for count in counts)
    notes.append(
        "p: exact two-sided sign-flip test over all 2^n signs, not adjusted for the number of rows "
        f"({len(differences)}). The least that n seeds can give is 2^(1-n) ({least})."
    )
    if counts[0] < 6:
        notes.append("Fewer than six seeds cannot give p of .05 or less, whatever the differences are.")
    notes.append("Bold: the interval excludes zero and p is .05 or less.")
    return notes


def _differences(comparison: Comparison) -> List[Tuple[Summary, Difference]]:
    return [(summary, summary.difference) for summary in comparison.summaries if summary.difference is not None]


def _summarize(row: Row, metric: Metric) -> Summary:
    values = {run.seed: metric.of(run) for run in row.runs}
    by_seed = {seed: value for seed, value in values.items() if value is not None}
    missing = tuple(seed for seed in values if seed not in by_seed)
    interval = Interval(reason="a seed has no value") if missing else bca_interval(list(by_seed.values()))
    return Summary(row, by_seed, missing, interval)


def _against(summary: Summary, reference: Optional[Summary]) -> Summary:
    if reference is None or reference is summary:
        return summary
    title, own, other = reference.row.title, summary.by_seed, reference.by_seed
    by_seed = {seed: own[seed] - other[seed] for seed in own if seed in other}
    unpaired = tuple(sorted(set(own) ^ set(other)))
    if summary.missing or reference.missing:  # the seeds that are left are not a fair choice of seeds
        difference = Difference(
            title, {}, unpaired, Interval(reason="a seed of one of the two rows has no value"), None
        )
    elif not by_seed:
        difference = Difference(title, {}, unpaired, Interval(reason=f"no seed in common with {title}"), None)
    else:
        values = list(by_seed.values())
        difference = Difference(title, by_seed, unpaired, bca_interval(values), sign_flip_p(values))
    return Summary(summary.row, summary.by_seed, summary.missing, summary.interval, difference)


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(str(seed) for seed in seeds)}"


def _summary_json(summary: Summary) -> Dict[str, Any]:
    difference = summary.difference
    return {
        "row": summary.row.name,
        "column": summary.row.column,
        "mean": summary.mean,
        "standard_deviation": summary.deviation,
        "interval": summary.interval.to_json(),
        "seeds": {str(seed): value for seed, value in summary.by_seed.items()},
        "missing_seeds": list(summary.missing),
        "difference": None
        if difference is None
        else {
            "against": difference.against,
            "mean": difference.mean,
            "seeds": {str(seed): value for seed, value in difference.by_seed.items()},
            "unpaired_seeds": list(difference.unpaired),
            "interval": difference.interval.to_json(),
            "p": difference.p,
            "smallest_p": smallest_p(len(difference.by_seed)),
            "clear": difference.is_clear,
        },
    }
