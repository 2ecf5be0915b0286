"""Comparisons as Markdown, and as the plain rows that other pages lay out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import List, Sequence, Tuple

from analysis.comparison.compare import Comparison, Summary, notes_of

_SPECIAL = re.compile(r"([|\\`*<>\[\]])")


@dataclass(frozen=True)
class Table:
    """Cells as text.

    Args:
        title: above it; "" for none.
        header: of each column.
        rows: cells of each row.
        bold: (row, column) of the cells that stand out.
    """

    title: str
    header: Tuple[str, ...]
    rows: Tuple[Tuple[str, ...], ...]
    bold: Tuple[Tuple[int, int], ...] = ()


def tables_of(comparison: Comparison) -> List[Table]:
    """Return one table for each column of a grid: mean, deviation, seeds, and differences where there are some.

    Several columns begin with a table of all means side by side, as in the paper.
    """
    tables = [_table(comparison, column) for column in comparison.columns]
    return tables if len(tables) == 1 else [_overview(comparison), *tables]


def _overview(comparison: Comparison) -> Table:
    metric, columns = comparison.metric, comparison.columns
    cells = {(summary.row.name, summary.row.column): _short(comparison, summary) for summary in comparison.summaries}
    names = dict.fromkeys(summary.row.name for summary in comparison.summaries)
    rows = tuple((name, *(cells.get((name, column), "") for column in columns)) for name in names)
    return Table(f"{metric.label}: mean ± sd (seeds)", ("", *columns), rows)


def _short(comparison: Comparison, summary: Summary) -> str:
    text, count = comparison.metric.text, len(summary.by_seed) + len(summary.missing)
    deviation = "" if summary.deviation is None else f" ± {text(summary.deviation)}"
    return f"{text(summary.mean)}{deviation} ({count})"


def _table(comparison: Comparison, column: str) -> Table:
    metric, summaries = comparison.metric, comparison.of_column(column)
    header = ["", metric.label, "sd", "seeds"]
    has_differences = any(summary.difference is not None for summary in summaries)
    if has_differences:
        unit = f" ({metric.difference_unit})" if metric.difference_unit else ""
        header += [f"difference{'' if comparison.pairs else f' to {comparison.against}'}{unit}", "p"]
    rows, bold = [], []
    for number, summary in enumerate(summaries):
        seeds = len(summary.by_seed) + len(summary.missing)
        cells = [summary.row.name, metric.text(summary.mean), metric.text(summary.deviation), str(seeds)]
        if has_differences:
            cells += _difference_cells(comparison, summary)
            if summary.difference is not None and summary.difference.is_clear:
                bold.append((number, 4))
        rows.append(tuple(cells))
    return Table(column, tuple(header), tuple(rows), tuple(bold))


def _difference_cells(comparison: Comparison, summary: Summary) -> List[str]:
    difference, text = summary.difference, comparison.metric.text
    if difference is None:
        return ["", ""]
    if difference.mean is None:
        return [text(None), ""]
    interval, count = difference.interval, len(difference.by_seed)
    ends = "no interval" if interval.reason else f"{text(interval.low, sign=True)}, {text(interval.high, sign=True)}"
    paired = "" if count == len(summary.by_seed) else f", {count} pairs"
    named = f" to {comparison.reference_of(summary)}" if comparison.pairs else ""
    return [f"{text(difference.mean, sign=True)} [{ends}]{named}{paired}", f"{difference.p:.3f}"]


def markdown_of(comparison: Comparison) -> str:
    """Return the tables of a comparison and its notes."""
    parts = [markdown_table(table) for table in tables_of(comparison)]
    return "\n".join(parts) + "\n" + "".join(f"* {escape_markdown(note)}\n" for note in notes_of(comparison))


def markdown_table(table: Table) -> str:
    """Return a table in GitHub's Markdown, under its title."""
    lines = [f"**{escape_markdown(table.title)}**", ""] if table.title else []
    lines += [_line([escape_markdown(cell) for cell in table.header]), "|" + "---|" * len(table.header)]
    for number, row in enumerate(table.rows):
        cells = [escape_markdown(cell) for cell in row]
        lines.append(
            _line([f"**{cell}**" if (number, column) in table.bold else cell for column, cell in enumerate(cells)])
        )
    return "\n".join(lines) + "\n"


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line: names of runs are anyone's."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
