"""Several runs of the benchmarks become one table: of each number the worst."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict

import pytest

from benchmarks.worst import DifferentRunsError, combine, main, worst


def run(ratio: float, share: float, machine: str = "2 cores") -> Dict[str, Any]:
    timing = {"milliseconds": 10 * ratio, "ratio": ratio, "first_quartile": ratio - 0.1, "third_quartile": ratio + 0.1}
    return {
        "machine": {"machine_class": machine},
        "rows": [
            {"name": "a", "timings": {"ours": {**timing, "repetitions": 15}}, "copy_bandwidth_share": share},
            {"name": "b", "geometric_mean": {"ours": 2 * ratio}, "copy_bandwidth_share": None},
        ],
    }


def test_times_and_ratios_take_the_largest_and_rates_the_smallest() -> None:
    result = worst([run(0.3, 0.8), run(0.5, 0.9), run(0.4, 0.7)])
    timing = result["rows"][0]["timings"]["ours"]
    assert timing == {
        "milliseconds": 5.0,
        "ratio": 0.5,
        "first_quartile": pytest.approx(0.2),
        "third_quartile": pytest.approx(0.6),
        "repetitions": 15,
    }
    assert result["rows"][0]["copy_bandwidth_share"] == 0.7
    assert result["rows"][1] == {"name": "b", "geometric_mean": {"ours": 1.0}, "copy_bandwidth_share": None}


@pytest.mark.parametrize(
    "change, named",
    [
        ({"machine": {"machine_class": "4 cores"}}, "machine_class: '2 cores' and '4 cores'"),
        ({"rows": []}, "rows"),
        ({"machine": "2 cores"}, "machine"),
    ],
)
def test_runs_that_measured_different_things_are_refused(change: Dict[str, Any], named: str) -> None:
    with pytest.raises(DifferentRunsError, match=named):
        worst([run(0.3, 0.8), {**run(0.3, 0.8), **change}])


def test_the_command_writes_files_that_say_how_many_runs_they_hold(tmp_path: Path) -> None:
    for name, ratio in (("run1", 0.3), ("run2", 0.4)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "step.json").write_text(json.dumps(run(ratio, 0.8)))
    main([str(tmp_path / "run1"), str(tmp_path / "run2"), "--out", str(tmp_path)])
    written = json.loads((tmp_path / "step.json").read_text())
    assert written.pop("runs") == 2
    assert written == run(0.4, 0.8) | {"rows": written["rows"]}
    assert written["rows"][1]["geometric_mean"]["ours"] == 0.8


def test_a_run_without_a_file_that_another_has_is_refused(tmp_path: Path) -> None:
    for name, files in (("run1", ["step.json"]), ("run2", ["step.json", "data.json"])):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("{}")
    with pytest.raises(DifferentRunsError, match=r"data\.json"):
        combine([tmp_path / "run1", tmp_path / "run2"], tmp_path)
