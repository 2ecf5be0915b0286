"""The table of faults that a run survives: tests/faults.yaml names each fault, what is expected, and its tests.

As a part of pytest (tests/conftest.py) it marks these tests `faults` and, when they were asked for (`make faults`),
writes build/faults.md: every row with its verdict and its time. As a program it prints the table of docs/faults.md:

    python tests/fault_table.py
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(__file__).with_name("faults.yaml")
REPORT = ROOT / "build" / "faults.md"
MARKER = "faults"


@dataclass(frozen=True)
class Row:
    """A fault, what is expected of a run, and the tests (file::name, without parameters) that inject it."""

    id: str
    fault: str
    expected: str
    tests: Tuple[str, ...]


@dataclass
class Seen:
    """What one test, over all of its parameters, came to."""

    outcomes: List[str] = field(default_factory=list)
    seconds: float = 0.0


def read_table() -> List[Row]:
    rows = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return [Row(row["id"], row["fault"], row["expected"], tuple(row["tests"])) for row in rows]


def without_parameters(node: str) -> str:
    """tests/room/test_x.py::test_y[0] -> room/test_x.py::test_y, whatever the folder that pytest was started in."""
    path, _, name = node.partition("::")
    return f"{path.partition('tests/')[2] or path}::{name.partition('[')[0]}"


def verdict(outcomes: Sequence[str]) -> str:
    """Of the tests of one row: one failure is the row's; what did not run was not shown."""
    for word in ("failed", "not run", "skipped"):
        if word in outcomes:
            return word
    return "passed"


def reported(rows: Sequence[Row], seen: Dict[str, Seen]) -> Iterator[Tuple[Row, str, float]]:
    """Yield each row with its verdict and the seconds of its tests."""
    for row in rows:
        found = [seen.get(test, Seen(["not run"])) for test in row.tests]
        yield row, verdict([word for test in found for word in test.outcomes]), sum(test.seconds for test in found)


def as_report(rows: Sequence[Row], seen: Dict[str, Seen]) -> str:
    lines = ["| | what is injected | expected | verdict | seconds | tests |", "|---|---|---|---|---|---|"]
    for row, word, seconds in reported(rows, seen):
        tests = "<br>".join(f"`{test}`" for test in row.tests)
        lines.append(f"| {row.id} | {row.fault} | {row.expected} | {word} | {seconds:.0f} | {tests} |")
    return "\n".join(lines) + "\n"


def as_page(rows: Sequence[Row]) -> str:
    """Return the table of the documentation: without what a machine makes of it."""
    lines = ["| | what happens | what the run does | tested in |", "|---|---|---|---|"]
    for row in rows:
        files = ", ".join(f"`tests/{name}`" for name in dict.fromkeys(test.partition("::")[0] for test in row.tests))
        lines.append(f"| {row.id} | {row.fault} | {row.expected} | {files} |")
    return "\n".join(lines) + "\n"


# ---- hooks of pytest ----

_ROWS = read_table()
_SEEN: Dict[str, Seen] = {}


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    named = {test for row in _ROWS for test in row.tests}
    for item in items:
        if without_parameters(item.nodeid) in named:
            item.add_marker(MARKER)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    test = _SEEN.setdefault(without_parameters(report.nodeid), Seen())
    test.seconds += report.duration
    if report.when == "call" or report.outcome != "passed":
        test.outcomes.append(report.outcome)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if config.getoption("-m") != MARKER:
        return
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(as_report(_ROWS, _SEEN), encoding="utf-8")
    terminalreporter.section(f"faults: {REPORT.relative_to(ROOT)}")
    for row, word, seconds in reported(_ROWS, _SEEN):
        terminalreporter.write_line(f"{row.id:<5}{word:<9}{seconds:>6.0f} s  {row.fault}")


if __name__ == "__main__":
    print(as_page(_ROWS), end="")
