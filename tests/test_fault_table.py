"""The table of faults names tests that exist, tells their verdicts, and is the one of the documentation."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import List

import pytest
from fault_table import ROOT, Row, Seen, as_page, as_report, read_table, verdict, without_parameters

TESTS = ROOT / "tests"


def functions(path: Path) -> List[str]:
    return [node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]


@pytest.mark.parametrize("row", read_table(), ids=lambda row: row.id)
def test_every_test_that_a_row_names_exists(row: Row) -> None:
    assert row.tests
    for test in row.tests:
        path, _, name = test.partition("::")
        assert name in functions(TESTS / path), test


def test_rows_have_ids_of_their_own() -> None:
    ids = [row.id for row in read_table()]
    assert ids == [f"F{number}" for number in range(1, len(ids) + 1)]


def test_a_verdict_is_that_of_the_worst_test() -> None:
    assert verdict(["passed", "passed"]) == "passed"
    assert verdict(["passed", "skipped"]) == "skipped"
    assert verdict(["skipped", "not run", "passed"]) == "not run"
    assert verdict(["not run", "failed"]) == "failed"


def test_a_row_is_reported_with_all_of_its_tests() -> None:
    rows = [Row("F1", "a fault", "an end", ("a.py::test_b", "a.py::test_c")), Row("F2", "g", "h", ("a.py::test_d",))]
    seen = {"a.py::test_b": Seen(["passed", "failed"], 2.0), "a.py::test_c": Seen(["passed"], 3.0)}
    lines = as_report(rows, seen).splitlines()
    assert lines[2] == "| F1 | a fault | an end | failed | 5 | `a.py::test_b`<br>`a.py::test_c` |"
    assert lines[3] == "| F2 | g | h | not run | 0 | `a.py::test_d` |"


def test_names_of_nodes_are_those_of_the_table() -> None:
    assert without_parameters("tests/room/test_x.py::test_y[tests/0-a]") == "room/test_x.py::test_y"


def test_the_tests_of_the_table_are_marked(request: pytest.FixtureRequest) -> None:
    named = {test for row in read_table() for test in row.tests}
    for item in request.session.items:
        is_marked = item.get_closest_marker("faults") is not None
        assert is_marked == (without_parameters(item.nodeid) in named), item.nodeid


def test_the_page_of_the_documentation_shows_the_table() -> None:
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    assert page.endswith(as_page(read_table())), (
        "write it anew: python tests/fault_table.py, at the end of docs/faults.md"
    )
