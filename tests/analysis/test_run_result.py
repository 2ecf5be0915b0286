"""Runs read from folders and result files; what is malformed is refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict

import pytest
from made_runs import power_record, write_result, write_run

import train
from analysis.comparison.run_result import load_results
from analysis.results_file import ResultsError


def edit(path: Path, **changes: Any) -> None:
    document: Dict[str, Any] = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps(document))


def test_a_run_folder_and_a_result_file_of_the_same_run_say_the_same(tmp_path: Path) -> None:
    summary = {"train": {"top1": 0.9, "loss": 0.2}, "test_reestimated": {"top1": 0.7, "loss": 0.6}, "experiment": "gn8"}
    folder = write_run(tmp_path / "run", 3, 0.75, summary=summary, power=(0.25, 0.5))
    file = write_result(tmp_path / "grid", "gn8", 3, 0.75, summary=summary)
    edit(file, power=[power_record(0.9, 0.9), power_record(0.25, 0.5)])
    from_folder, from_file = load_results([folder, file])
    for run in (from_folder, from_file):
        assert (run.row, run.seed, run.settings["norm.num_groups"], run.diverged) == ("gn8", 3, 8, False)
        assert run.figures == {
            "top1": 0.75,
            "loss": 1.25,
            "train_top1": 0.9,
            "train_loss": 0.2,
            "reestimated_top1": 0.7,
            "reestimated_loss": 0.6,
            "images_per_second": 100.0,
        }
        assert [record["top1"] for record in run.records] == [0.1, 0.75]
        assert [layer["power"][0] for layer in run.power] == [0.25, 0.5]


def test_a_real_run_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = ["schedule.epochs=1", "data.num_train_images=128", "data.num_eval_images=50", "run.power_every_epochs=1"]
    arguments = ["--config", "generated_smoke", "--output-dir", str(folder), "--set", "schedule.warmup_epochs=0"]
    assert train.main(arguments + [part for setting in settings for part in ("--set", setting)]) == 0
    (run,) = load_results([folder])
    assert run.seed == 0
    assert run.settings["norm.proxy"] is True
    assert 0 <= (run.figures["top1"] or 0) <= 1
    assert {record["split"] for record in run.records} == {"train", "eval"}
    assert len(run.power) == 7


def test_folders_of_results_and_of_runs_are_read_in_natural_order(tmp_path: Path) -> None:
    for row in ("bn16", "bn2"):
        for seed in (10, 9):
            write_result(tmp_path / "grid", row, seed, 0.5)
    runs = load_results([tmp_path / "grid"])
    assert [(run.row, run.seed) for run in runs] == [("bn2", 9), ("bn2", 10), ("bn16", 9), ("bn16", 10)]
    for name in ("b", "a"):
        write_run(tmp_path / "runs" / name, 0, 0.5)
    assert [run.source.name for run in load_results([tmp_path / "runs"])] == ["a", "b"]


def test_a_diverged_run_is_a_result_without_figures(tmp_path: Path) -> None:
    runs = load_results([write_run(tmp_path / "run", 0, None), write_result(tmp_path, "bn2", 0, None)])
    assert [run.diverged for run in runs] == [True, True]
    assert [run.figures for run in runs] == [{}, {}]


def test_an_unfinished_run_is_refused_with_its_state(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", 0, 0.5)
    (folder / "summary.json").unlink()
    with pytest.raises(
        ResultsError, match=r"run is not finished: it has no summary.json, and no status.json; finish it"
    ):
        load_results([folder])
    (folder / "status.json").write_text(json.dumps({"state": "preempted", "reason": "signal 15", "exit_code": 75}))
    with pytest.raises(ResultsError, match="run is not finished: preempted, signal 15; finish it with --resume"):
        load_results([folder])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "0"}, "seed '0' is not a whole number"),
        ({"seed": True}, "seed True is not a whole number"),
        ({"seed": -1}, "seed -1 is not a whole number"),
        ({"row": 3}, "row 3 is not one line of text"),
        ({"row": "a\nb"}, "is not one line of text"),
        ({"column": "a\0"}, "is not one line of text"),
        ({"config": {"model": 3}}, "does not consist of sections with keys"),
        ({"summary": []}, "summary .. is not an object"),
        ({"summary": {"loss": 1.0}}, "it has no top1; it has loss"),
        ({"summary": {"top1": 50.0}}, "top1 50.0 is not a fraction"),
        ({"summary": {"top1": "0.5"}}, "top1 '0.5' is not a number"),
        ({"summary": {"top1": 0.5, "loss": float("inf")}}, "loss inf is not a number"),
        ({"summary": {"top1": 0.5, "loss": 10**400}}, "loss 1000000.* is not a number"),
        ({"evaluations": {}}, "records are not a list"),
        ({"evaluations": [{"split": "eval"}]}, "record 1 lacks some of split, epoch, loss, top1"),
        ({"power": [{"layers": []}]}, "the last power record has no layers"),
        ({"power": [{"layers": [{"name": "a", "power": [1, 2]}]}]}, r"no name and power \[P1, P2, P3, P4\]"),
        ({"power": [{"layers": [{"name": "a", "power": [1, 0, 0, None]}]}]}, "the power of a is not finite"),
    ],
)
def test_a_malformed_result_file_is_refused(tmp_path: Path, changes: Dict[str, Any], message: str) -> None:
    path = write_result(tmp_path, "gn8", 0, 0.5)
    edit(path, **changes)
    with pytest.raises(ResultsError, match=message) as caught:
        load_results([path])
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("", "cannot be read"), ("[]", "holds list"), ("{}", "it has no row, seed")]
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "gn8.seed0.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=message):
        load_results([path])


def test_paths_that_hold_no_run_and_paths_named_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="no such run folder"):
        load_results([tmp_path / "none"])
    with pytest.raises(ResultsError, match="is not a run folder"):
        load_results([tmp_path])
    run = write_run(tmp_path / "run", 0, 0.5)
    with pytest.raises(ResultsError, match="named twice"):
        load_results([run, tmp_path])
