"""compare, report, results and curves from the command line: files, text, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import List

import matplotlib.image
import pytest
from made_runs import write_result, write_run

import analyze

ROOT = Path(__file__).resolve().parents[2]
PAGE = """# Results

Before.

<!-- compare: grid --against bn --pictures bars --out pictures -->
<!-- end of compare -->

After.
"""


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a grid of two rows with three seeds; the current folder is the one that it lies in."""
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        write_result(Path("grid"), "bn", seed, 0.8 + seed / 100)
        write_result(Path("grid"), "gn", seed, 0.82 + seed / 50)
    return Path("grid")


def test_compare_prints_markdown_or_json_of_the_same_numbers(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", str(grid), "--against", "bn", "--metric", "top1", "loss"]
    assert analyze.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| gn | 84.00 | 2.00 | 3 | +3.00 \\[" in printed
    assert analyze.main([*arguments, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["comparisons"]
    assert (first["metric"], second["metric"]) == ("test top-1 (%)", "test loss")
    gn = first["rows"][1]
    assert gn["seeds"] == pytest.approx({"0": 82.0, "1": 84.0, "2": 86.0})
    assert gn["difference"]["mean"] == pytest.approx(3.0)
    assert gn["difference"]["p"] == gn["difference"]["smallest_p"] == 0.25
    assert gn["difference"]["clear"] is False
    assert gn["difference"]["interval"]["exact"] is True


def test_compare_writes_all_or_the_chosen_pictures(grid: Path) -> None:
    assert analyze.main(["compare", str(grid), "--out", "all"]) == 0
    assert sorted(path.name for path in Path("all").iterdir()) == [
        "bars.svg",
        "comparison.json",
        "comparison.md",
        "curves.svg",
    ]
    assert "](bars.svg)" in Path("all/comparison.md").read_text()
    assert analyze.main(["compare", str(grid), "--out", "one", "--pictures", "curves"]) == 0
    assert not Path("one/bars.svg").exists()


def test_rows_are_chosen_and_ordered(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze.main(["compare", str(grid), "--rows", "gn", "bn"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("| gn |") < printed.index("| bn |")
    assert analyze.main(["compare", str(grid), "--rows", "gn"]) == 0
    assert "| bn |" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compare", "none"], "none: no such run folder"),
        (["compare", "grid", "--against", "bm"], "--against bm: no row is called bm; bn"),
        (["compare", "grid", "--rows", "ln"], "--rows ln: no row has this name; there are bn; gn"),
        (["compare", "grid", "--pictures", "bars"], "--pictures has no effect without --out"),
        (["compare", "grid", "--out", "o", "--pictures", "power"], "no picture power: setting needs --x"),
        (["compare", "grid", "--x", "norm.num_groups"], "no rows of one norm differ in it"),
        (["report", "grid", "--metric", "train_top1", "--out", "o"], "no run has a training top-1"),
        (["curves", "grid"], "grid is not a run folder: it has no config.yaml"),
        (["results", "--page", "none.md"], "--page none.md cannot be read: No such file"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    grid: Path, capsys: pytest.CaptureFixture[str], arguments: List[str], message: str
) -> None:
    assert analyze.main(arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_a_page_is_filled_the_same_each_time_and_checked(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = Path("page.md")
    page.write_text(PAGE)
    assert analyze.main(["results", "--page", "page.md", "--check"]) == 2
    assert "page.md, pictures/bars.svg: not what the result files say" in capsys.readouterr().err
    assert page.read_text() == PAGE
    assert analyze.main(["results", "--page", "page.md"]) == 0
    filled = page.read_text()
    assert filled.startswith(
        "# Results\n\nBefore.\n\n<!-- compare: grid --against bn --pictures bars --out pictures -->\n"
    )
    assert filled.endswith("<!-- end of compare -->\n\nAfter.\n")
    assert "| gn | 84.00 |" in filled
    assert "](pictures/bars.svg)" in filled
    assert analyze.main(["results", "--page", "page.md"]) == 0
    assert page.read_text() == filled
    assert analyze.main(["results", "--page", "page.md", "--check"]) == 0


def test_a_block_about_results_that_are_not_there_yet_says_so(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("page.md").write_text(PAGE.replace("compare: grid", "compare: later"))
    assert analyze.main(["results", "--page", "page.md"]) == 0
    assert "later: no results yet" in capsys.readouterr().out
    assert "*No results yet.*\n\n<!-- end of compare -->" in Path("page.md").read_text()
    assert not Path("pictures").exists()
    Path("later/rates").mkdir(parents=True)  # a grid whose learning rates are being checked
    assert analyze.main(["results", "--page", "page.md", "--check"]) == 0
    write_result(Path("later"), "bn", 0, 0.5)
    assert analyze.main(["results", "--page", "page.md", "--check"]) == 2


def test_a_changed_result_makes_the_check_fail(grid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("page.md").write_text(PAGE)
    assert analyze.main(["results", "--page", "page.md"]) == 0
    write_result(grid, "gn", 1, 0.841)
    assert analyze.main(["results", "--page", "page.md", "--check"]) == 2
    assert "page.md, pictures/bars.svg: not what" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("nothing", "0 lines begin a block and 0 end one"),
        ("<!-- compare: grid -->\n", "1 lines begin a block and 0 end one"),
        ("<!-- compare: grid -->\n<!-- compare: grid -->\n<!-- end of compare -->\n", "2 lines begin a block and 1"),
        ("<!-- compare: grid --bars -->\n<!-- end of compare -->\n", "unrecognized arguments: --bars"),
        ("<!-- compare: grid --out o -->\n<!-- end of compare -->\n", "has --pictures and --out, or neither"),
    ],
)
def test_a_page_with_a_broken_block_is_refused_and_left_alone(
    grid: Path, capsys: pytest.CaptureFixture[str], page: str, message: str
) -> None:
    Path("page.md").write_text(page)
    assert analyze.main(["results", "--page", "page.md"]) == 2
    assert message in capsys.readouterr().err
    assert Path("page.md").read_text() == page


def test_curves_draws_a_running_run_again_with_its_name_and_norm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "mine", 3, 0.5, power=(0.2, 0.4))
    (run / "summary.json").unlink()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"split": "ev')  # a record that is being written
    assert analyze.main(["curves", str(run)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{run}/curves.png", f"{run}/power.png"]
    with_title = matplotlib.image.imread(run / "curves.png")
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("resnet8", "resnet10"))
    assert analyze.main(["curves", str(run)]) == 0
    assert (matplotlib.image.imread(run / "curves.png") != with_title).any()


def test_report_writes_one_file(grid: Path) -> None:
    assert analyze.main(["report", str(grid), "--against", "bn", "--out", "page", "--title", "A & B"]) == 0
    assert [path.name for path in Path("page").iterdir()] == ["index.html"]
    assert "<title>A &amp; B</title>" in Path("page/index.html").read_text()


def test_the_published_page_is_what_its_result_files_give() -> None:
    done = subprocess.run(
        [sys.executable, "analyze.py", "results", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
