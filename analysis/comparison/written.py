"""A comparison as files and text: what `compare` prints, and what the blocks of a page hold."""

from __future__ import annotations

from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Sequence, Tuple

from analysis.comparison.compare import Comparison, compare_rows
from analysis.comparison.metric import ERROR_OF, METRICS
from analysis.comparison.rows import Row, group_runs
from analysis.comparison.run_result import load_results
from analysis.comparison.tables import escape_markdown, markdown_of
from analysis.results_file import ResultsError

if TYPE_CHECKING:  # drawing takes longer to import than all the rest
    from analysis.comparison.pictures.picture import Picture

KINDS = ("setting", "bars", "curves", "power")


@dataclass(frozen=True)
class Question:
    """What is asked about runs.

    Args:
        runs: folders and files.
        metrics: names of METRICS.
        against: the row that others are compared with; "" for none.
        pairs: (row, the other that this row is compared with).
        rows: names of rows to take, in this order; () for all.
        group_by: settings that tell rows apart; see `group_runs`.
        setting: "section.key" to draw the first metric against; "" for none.
    """

    runs: Tuple[Path, ...]
    metrics: Tuple[str, ...] = ("top1",)
    against: str = ""
    pairs: Tuple[Tuple[str, str], ...] = ()
    rows: Tuple[str, ...] = ()
    group_by: Tuple[str, ...] = ()
    setting: str = ""


@dataclass(frozen=True)
class Answer:
    """Rows, one comparison for each metric, and the pictures that can be drawn, by kind."""

    rows: Tuple[Row, ...]
    comparisons: Tuple[Comparison, ...]
    pictures: Dict[str, Picture]

    def markdown(self) -> str:
        """Return all tables, one metric after the other."""
        return "\n".join(markdown_of(comparison) for comparison in self.comparisons)

    def to_json(self) -> Dict[str, Any]:
        return {"comparisons": [comparison.to_json() for comparison in self.comparisons]}

    def chosen(self, kinds: Sequence[str]) -> List[Picture]:
        """Return the pictures of `kinds`.

        Raises:
            ResultsError: one that these runs do not give.
        """
        lacking = [kind for kind in kinds if kind not in self.pictures]
        if lacking:
            raise ResultsError(
                f"these runs give no picture {', '.join(lacking)}: setting needs --x, curves two evaluated epochs, "
                "power needs runs with power.jsonl"
            )
        return [self.pictures[kind] for kind in kinds]


def answer(question: Question) -> Answer:
    """Read the runs and compares them.

    Raises:
        ResultsError: runs that cannot be read, and a question that they do not answer.
    """
    rows = chosen_rows(group_runs(load_results(question.runs), question.group_by), question.rows)
    comparisons = [compare_rows(rows, METRICS[name], question.against, question.pairs) for name in question.metrics]
    return Answer(tuple(rows), tuple(comparisons), pictures_of(rows, question))


def chosen_rows(rows: List[Row], names: Sequence[str]) -> List[Row]:
    """Return the rows called `names`, in that order; all for none.

    Raises:
        ResultsError: a name that no row has.
    """
    known = dict.fromkeys(row.name for row in rows)
    for name in names:
        if name not in known:
            raise ResultsError(f"--rows {name}: no row has this name; there are {'; '.join(known)}")
    return [row for name in names for row in rows if row.name == name] if names else rows


def pictures_of(rows: Sequence[Row], question: Question) -> Dict[str, Picture]:
    """Return what can be drawn of these rows. Accuracies are drawn as errors, on axes that begin at zero."""
    from analysis.comparison.pictures.against_setting import against_setting_picture
    from analysis.comparison.pictures.bars import bars_picture
    from analysis.comparison.pictures.learning_curves import has_curves, learning_curves_picture
    from analysis.comparison.pictures.power_by_row import power_picture, rows_with_power

    first = ERROR_OF.get(question.metrics[0], question.metrics[0])
    pictures: Dict[str, Picture] = {}
    if question.setting:
        again = METRICS.get(f"reestimated_{first}") if _reestimated(rows) else None
        reestimated = None if again is None else compare_rows(rows, again)
        pictures["setting"] = against_setting_picture(compare_rows(rows, METRICS[first]), reestimated, question.setting)
    pictures["bars"] = bars_picture(compare_rows(rows, METRICS[first]))
    if has_curves(rows):
        pictures["curves"] = learning_curves_picture(rows)
    if rows_with_power(rows):
        pictures["power"] = power_picture(rows)
    return pictures


def picture_markdown(picture: Picture, path: Path, page_folder: Path) -> str:
    """Return a saved picture with its caption, for a page in `page_folder`."""
    place = relpath(path, page_folder).replace("\\", "/")
    return f"![{escape_markdown(picture.alt)}]({place})\n\n*{escape_markdown(picture.caption)}*\n"


def _reestimated(rows: Sequence[Row]) -> bool:
    return any("reestimated_top1" in run.figures for row in rows for run in row.runs)
