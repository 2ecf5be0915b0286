"""Rows, paired differences, and what is said beside them."""

from __future__ import annotations

from pathlib import Path
from typing import List, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_runs import write_result, write_run

from analysis.comparison.compare import Comparison, compare_rows, notes_of
from analysis.comparison.metric import METRICS
from analysis.comparison.rows import group_runs
from analysis.comparison.run_result import RunResult, load_results
from analysis.comparison.tables import escape_markdown, markdown_of
from analysis.results_file import ResultsError

BN = [0.80, 0.82, 0.84, 0.81, 0.83, 0.85]
GN = [0.81, 0.84, 0.85, 0.83, 0.85, 0.88]


def grid(folder: Path, bn: Sequence[float] = BN, gn: Sequence[float] = GN) -> List[RunResult]:
    for row, values in (("bn", bn), ("gn", gn)):
        for seed, value in enumerate(values):
            write_result(folder, row, seed, value)
    return load_results([folder])


def compared(runs: Sequence[RunResult], metric: str = "top1", against: str = "bn") -> Comparison:
    return compare_rows(group_runs(runs), METRICS[metric], against)


def test_means_deviations_and_paired_differences_are_those_by_hand(tmp_path: Path) -> None:
    bn, gn = compared(grid(tmp_path)).summaries
    assert bn.mean == pytest.approx(82.5)
    assert bn.deviation == pytest.approx(1.8708287)  # sqrt(17.5 / 5)
    assert bn.difference is None
    difference = gn.difference
    assert difference is not None
    assert list(difference.by_seed.values()) == pytest.approx([1, 2, 1, 2, 2, 3])
    assert difference.mean == pytest.approx(11 / 6)
    assert difference.p == 2 / 64  # all six of one sign
    assert difference.is_clear


@pytest.mark.parametrize(
    ("metric", "mean", "difference"), [("top1", 82.0, 2.0), ("error", 18.0, -2.0), ("loss", 1.18, -0.02)]
)
def test_each_metric_has_its_unit_and_sign(tmp_path: Path, metric: str, mean: float, difference: float) -> None:
    bn, gn = compared(grid(tmp_path, [0.82] * 2, [0.84] * 2), metric).summaries
    assert bn.mean == pytest.approx(mean)
    assert gn.difference is not None
    assert gn.difference.mean == pytest.approx(difference)


def test_nothing_is_bold_with_three_seeds_however_far_apart(tmp_path: Path) -> None:
    comparison = compared(grid(tmp_path, [0.1, 0.11, 0.13], [0.9, 0.92, 0.91]))
    difference = comparison.summaries[1].difference
    assert difference is not None
    assert difference.interval.excludes_zero
    assert difference.p == 0.25
    markdown = markdown_of(comparison)
    assert "**" not in markdown
    assert "Fewer than six seeds cannot give p of .05 or less" in markdown
    assert "(3: 0.250)" in markdown


def test_only_the_clear_difference_is_bold(tmp_path: Path) -> None:
    for seed in range(6):
        write_result(tmp_path, "ln", seed, BN[seed] + (0.01 if seed % 2 else -0.01))
    markdown = markdown_of(compared(grid(tmp_path)))
    assert markdown.count("**") == 2
    (line,) = [line for line in markdown.splitlines() if "**" in line]
    assert line.startswith("| gn | 84.33 | 2.34 | 6 | **+1.83 \\[")
    assert line.endswith("| 0.031 |")


def test_equal_differences_have_no_interval_and_are_not_bold(tmp_path: Path) -> None:
    comparison = compared(grid(tmp_path, BN, [value + 0.01 for value in BN]))
    markdown = markdown_of(comparison)
    assert "+1.00 \\[no interval\\]" in markdown
    assert "**" not in markdown
    assert "* gn: no interval of the difference: all values are equal." in markdown


def test_two_seeds_have_no_interval(tmp_path: Path) -> None:
    markdown = markdown_of(compared(grid(tmp_path, BN[:2], GN[:2])))
    assert "gn: no interval of the difference: 2 of the 3 seeds that an interval needs." in markdown
    assert "BCa" not in markdown


def test_unpaired_seeds_are_named_and_kept_in_the_mean(tmp_path: Path) -> None:
    comparison = compared(grid(tmp_path, BN, GN[:4]))
    gn = comparison.summaries[1]
    assert gn.difference is not None
    assert list(gn.difference.by_seed) == [0, 1, 2, 3]
    assert "gn: seeds 4, 5 not in the difference to bn: only one of the two has them." in notes_of(comparison)


def test_rows_without_a_seed_in_common_have_no_difference(tmp_path: Path) -> None:
    write_result(tmp_path, "bn", 0, 0.5)
    write_result(tmp_path, "gn", 1, 0.6)
    comparison = compared(load_results([tmp_path]))
    gn = comparison.summaries[1]
    assert gn.difference is not None
    assert (gn.difference.mean, gn.difference.p) == (None, None)
    assert "gn: no interval of the difference: no seed in common with bn." in notes_of(comparison)


def test_a_diverged_seed_leaves_no_mean_and_no_difference_of_the_lucky_ones(tmp_path: Path) -> None:
    write_result(tmp_path, "gn", 6, None)
    write_result(tmp_path, "bn", 6, 0.8)
    comparison = compared(grid(tmp_path))
    gn = comparison.summaries[1]
    assert (gn.mean, gn.deviation) == (None, None)
    assert gn.difference is not None and gn.difference.mean is None
    assert "gn: the loss was not finite for seed 6, so there is no mean." in notes_of(comparison)
    assert "a seed of one of the two rows has no value" in notes_of(comparison)[-1]


def test_columns_are_compared_with_their_own_reference(tmp_path: Path) -> None:
    for column, offset in (("base", 0.0), ("extra", 0.1)):
        for seed, (bn, gn) in enumerate(zip(BN, GN)):
            write_result(tmp_path, "bn", seed, bn + offset / 2, column=column)
            write_result(tmp_path, "gn", seed, gn + offset, column=column)
    comparison = compared(load_results([tmp_path]))
    differences = {summary.row.title: summary.difference for summary in comparison.summaries}
    assert {title: each.mean for title, each in differences.items() if each} == pytest.approx(
        {"gn, base": 11 / 6, "gn, extra": 11 / 6 + 5}
    )
    markdown = markdown_of(comparison)
    assert markdown.count("| seeds |") == 2
    assert "|  | base | extra |" in markdown
    assert "| bn | 82.50 ± 1.87 (6) | 87.50 ± 1.87 (6) |" in markdown


def test_runs_without_names_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"a{seed}", seed, 0.5)
        write_run(tmp_path / f"b{seed}", seed, 0.6, norm__proxy=True)
        write_run(tmp_path / f"c{seed}", seed, 0.6, norm__proxy=True, model__width=16)
        write_run(tmp_path / f"d{seed}", seed, 0.6, norm__name="batch", norm__num_groups=None, batch__norm_batch_size=8)
    names = [row.name for row in group_runs(load_results([tmp_path]))]
    assert names == ["GN8, width=8", "GN8+PN, width=8", "GN8+PN, width=16", "BN, width=8, norm_batch_size=8"]


def test_runs_of_one_name_and_other_settings_are_rows_of_their_own_unless_pooled_by_name(tmp_path: Path) -> None:
    for seed, rate in enumerate((0.1, 0.2)):
        write_result(tmp_path, "gn", seed, 0.5, optimizer__learning_rate=rate)
    runs = load_results([tmp_path])
    assert [row.name for row in group_runs(runs)] == ["gn, learning_rate=0.1", "gn, learning_rate=0.2"]
    (row,) = group_runs(runs, ("name",))
    assert row.name == "gn"
    comparison = compare_rows([row], METRICS["top1"])
    assert "gn: its runs differ not in their seeds alone, but in optimizer.learning_rate." in notes_of(comparison)


def test_learning_rates_are_named_where_rows_differ_in_them(tmp_path: Path) -> None:
    for row, rate in (("bn", 0.1), ("gn", 0.2), ("ln", 0.1)):
        write_result(tmp_path, row, 0, 0.5, optimizer__learning_rate=rate)
    runs = load_results([tmp_path])
    assert "Learning rates: 0.1 for bn, ln; 0.2 for gn." in notes_of(compared(runs))
    same = [run for run in runs if run.row != "gn"]
    assert not [note for note in notes_of(compared(same)) if note.startswith("Learning rates")]


def test_chosen_settings_group_runs_and_two_runs_of_a_seed_are_refused(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"a{seed}", seed, 0.5)
        write_run(tmp_path / f"b{seed}", seed, 0.6, norm__proxy=True)
    runs = load_results([tmp_path])
    assert [row.name for row in group_runs(runs, ("norm.proxy",))] == ["GN8", "GN8+PN"]
    with pytest.raises(ResultsError, match="row width=8 has two runs of seed 0"):
        group_runs(runs, ("model.width",))
    with pytest.raises(ResultsError, match=r"--group-by norm\.prosy: no run has this setting"):
        group_runs(runs, ("norm.prosy",))


def test_a_norm_without_statistics_to_reestimate_is_compared_as_it_is(tmp_path: Path) -> None:
    for seed in range(3):
        summary = {"test_reestimated": {"top1": 0.7, "loss": 1.0}}
        settings = {"norm__name": "batch", "norm__num_groups": None}
        write_result(tmp_path, "bn", seed, 0.5, summary=summary, **settings)
        write_result(tmp_path, "old_bn", seed, 0.5, **settings)
        write_result(tmp_path, "gn", seed, 0.75)
    rows = {summary.row.name: summary for summary in compared(load_results([tmp_path]), "reestimated_top1").summaries}
    assert (rows["bn"].mean, rows["gn"].mean) == (pytest.approx(70), pytest.approx(75))
    assert rows["old_bn"].missing == (0, 1, 2)  # it was not measured


def test_unknown_references_and_metrics_that_no_run_has_are_refused(tmp_path: Path) -> None:
    runs = grid(tmp_path)
    with pytest.raises(ResultsError, match="--against bnn: no row is called bnn; bn"):
        compared(runs, against="bnn")
    with pytest.raises(ResultsError, match="--pair gn n: no row is called n; "):
        compare_rows(group_runs(runs), METRICS["top1"], pairs=[("gn", "n")])
    with pytest.raises(ResultsError, match="no run has a training top-1"):
        compared(runs, "train_top1")


@given(st.text(max_size=30))
def test_any_name_stays_in_its_cell(name: str) -> None:
    escaped = escape_markdown(name)
    assert "\n" not in escaped and "\r" not in escaped
    unescaped = escaped.replace("\\\\", "")
    assert all(unescaped[place - 1] == "\\" for place, letter in enumerate(unescaped) if letter in "|<`*[]")


def test_a_pair_compares_a_row_with_another_than_the_rest(tmp_path: Path) -> None:
    runs = grid(tmp_path)
    for seed, value in enumerate(GN):
        write_result(tmp_path, "gnpn", seed, value + 0.01 * (1 + seed % 2))
    rows = group_runs([*runs, *load_results([tmp_path / f"gnpn.seed{seed}.json" for seed in range(len(GN))])])
    comparison = compare_rows(rows, METRICS["top1"], "bn", [("gnpn", "gn")])
    means = [None if each.difference is None else each.difference.mean for each in comparison.summaries]
    assert means == [None, pytest.approx(11 / 6), pytest.approx(1.5)]
    table = markdown_of(comparison)
    assert "| difference (points) |" in table
    assert "\\] to bn**" in table and "\\] to gn**" in table
    alone = compare_rows(rows, METRICS["top1"], pairs=[("gnpn", "gn")])
    assert [each.difference is None for each in alone.summaries] == [True, True, False]
    with pytest.raises(ResultsError, match="two pairs begin with the same row"):
        compare_rows(rows, METRICS["top1"], pairs=[("gnpn", "gn"), ("gnpn", "bn")])
