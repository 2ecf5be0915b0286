"""The miniatures over seeds: what is finished is not run again, and differences are paired."""

import json
from pathlib import Path

import pytest

from analysis.comparison.bootstrap import bca_interval
from benchmarks import miniatures

QUICK = ["--train-images", "60", "--test-images", "30", "--rounds", "1", "--local-steps", "1", "--clients", "2"]


def test_a_seed_is_run_once_and_the_table_has_a_row_for_each_norm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "federated.jsonl"
    for seeds in (2, 3):
        miniatures.main(["federated", "--seeds", str(seeds), "--results", str(path), "--", *QUICK])
        assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == list(range(seeds))
    rows = capsys.readouterr().out.splitlines()[-3:]
    assert [row.split(" | ")[0] for row in rows] == ["| GN", "| GN+PN", "| BN"]


def test_a_run_with_other_options_is_another(tmp_path: Path) -> None:
    path = tmp_path / "federated.jsonl"
    for rounds in ("1", "2"):
        miniatures.main(["federated", "--seeds", "1", "--results", str(path), "--", *QUICK, "--rounds", rounds])
    assert len(path.read_text().splitlines()) == 2


def test_differences_are_paired_by_seed_and_have_an_interval() -> None:
    interval = bca_interval([1.0, 2.0, 3.0])
    seeds = [{"GN": 0.5 + 0.1 * seed, "GN+PN": 0.51 + 0.11 * seed} for seed in range(3)]
    assert miniatures.table(seeds).splitlines()[2:] == [
        "| GN | 60.00 +- 10.00 |  |",
        f"| GN+PN | 62.00 +- 11.00 | +2.00 [{interval.low:+.2f}, {interval.high:+.2f}] |",
    ]
