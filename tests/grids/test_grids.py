"""What a grid file means: its runs in order, its mistakes, the rate that is chosen, what counts as changed."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from configs import ConfigError, load_config
from grids.load import grid_names, load_grid
from grids.plan import Cell, Plan, Selection, Trial, build_plan
from grids.rates import RateCheckError, choose_rate
from grids.results import Results, last_epoch_loss, why_changed
from grids.schema import Grid
from grids.seeds import parse_seeds
from grids.table import build_table

SMALL = {
    "title": "small",
    "experiment": "generated_smoke",
    "seeds": [0, 1],
    "rows": {"a": {}, "b": {"set": ["norm.proxy=false"], "rates_from": "a"}},
    "columns": {"x": {}, "y": {"set": ["schedule.epochs=2"], "rates_from": "x"}},
    "rates": {"seed": 100},
}


def small(**changes: Any) -> Grid:
    return Grid.model_validate({**copy.deepcopy(SMALL), **changes})


@pytest.mark.parametrize("name", grid_names())
def test_every_shipped_grid_loads_with_all_its_configurations(name: str) -> None:
    plan = build_plan(load_grid(name), Selection())
    for cell in plan.cells:
        config = cell.config(seed=3)
        assert config.run.seed == 3
        assert config.device.threads == 1
    head = (Path(load_grid.__globals__["FOLDER"]) / f"{name}.yaml").read_text().split("\n\n")[0]
    for word in ("command", "runs", "budget", f"python reproduce.py {name}"):
        assert word in head


@pytest.mark.parametrize("name", grid_names())
def test_no_two_rows_of_a_shipped_grid_are_the_same_experiment(name: str) -> None:
    plan = build_plan(load_grid(name), Selection())
    dumps = {cell: cell.config(seed=0).model_dump_json() for cell in plan.cells}
    assert len(set(dumps.values())) == len(dumps)


def test_rows_of_small_batch_differ_in_the_norm_and_its_batch_alone() -> None:
    plan = build_plan(load_grid("small_batch"), Selection())
    dumps = {cell.row: cell.config(seed=0).model_dump() for cell in plan.cells}
    for dump in dumps.values():
        for section in ("model", "data", "optimizer", "schedule", "regularization"):
            assert dump[section] == dumps["bn128"][section]
        assert dump["batch"]["global_batch_size"] == 128
    sizes = {row: dump["batch"]["norm_batch_size"] for row, dump in dumps.items() if row.startswith("bn")}
    assert sizes == {"bn2": 2, "bn4": 4, "bn8": 8, "bn16": 16, "bn32": 32, "bn128": 128}


@pytest.mark.parametrize(
    ("text", "seeds"), [("0-5", (0, 1, 2, 3, 4, 5)), ("3", (3,)), ("0,2,7-9", (0, 2, 7, 8, 9)), ("4, 1", (4, 1))]
)
def test_seeds_are_numbers_and_ranges(text: str, seeds: Any) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "5-0", "a", "1-", "-1", "1.5"])
def test_other_seeds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 0-5"):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["0-999999999999999", "1,2-10002", ",".join(["0-9999"] * 3)])
def test_more_seeds_than_anybody_runs_are_refused_before_they_take_memory(text: str) -> None:
    with pytest.raises(ValueError, match="more than 10,000 runs of each row"):
        parse_seeds(text)


def test_checks_come_first_and_then_whole_seeds() -> None:
    names = [str(trial) for trial in build_plan(small(), Selection()).trials()]
    assert names == [
        "a.x rate x0.5 seed 100",
        "a.x rate x1 seed 100",
        "a.x rate x2 seed 100",
        *(f"{row}.{column} seed {seed}" for seed in (0, 1) for column in "xy" for row in "ab"),
    ]


def test_a_selection_keeps_the_checks_that_it_needs() -> None:
    plan = build_plan(small(), Selection(rows=["b"], columns=["y"], seeds=[7]))
    assert [str(trial) for trial in plan.trials()][-1] == "b.y seed 7"
    assert [str(cell) for cell in plan.checked] == ["a.x"]
    assert len(plan.trials()) == 4


def test_overrides_come_in_the_order_grid_column_row_command_line() -> None:
    grid = small(
        set=["schedule.epochs=5", "optimizer.weight_decay=0.1", "optimizer.momentum=0.1", "run.seed=9"],
        columns={"x": {"set": ["optimizer.weight_decay=0.2", "optimizer.momentum=0.2"]}},
        rows={"a": {"set": ["optimizer.momentum=0.3"]}},
    )
    config = build_plan(grid, Selection(overrides=["data.num_eval_images=7"])).cells[0].config(seed=4)
    assert (config.schedule.epochs, config.optimizer.weight_decay, config.optimizer.momentum) == (5, 0.2, 0.3)
    assert (config.data.num_eval_images, config.run.seed) == (7, 4)


def test_a_factor_multiplies_the_rate_of_the_overridden_experiment() -> None:
    cell = build_plan(small(set=["optimizer.learning_rate=3e-5"]), Selection()).cells[0]
    assert cell.config(0, factor=2.0).optimizer.learning_rate == 6e-5
    assert cell.config(0).optimizer.learning_rate == 3e-5


def test_a_columns_prefix_names_the_experiment() -> None:
    rows = {"gnpn": {"experiment": "gn8pn"}}
    cell = build_plan(small(rows=rows, columns={"x": {"prefix": "fashion_rn20_"}}), Selection()).cells[0]
    assert cell.experiment == "fashion_rn20_gn8pn"


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("  a: {}", "  a: {experimnt: x}", 6, ["rows.a.experimnt", "unknown key", "did you mean experiment?"]),
        ("seeds: 0-1", "sedes: 0-1", 4, ["unknown key", "did you mean seeds?"]),
        ("seeds: 0-1", "seeds: 1-0", 4, ["such as 0-5"]),
        ("  seed: 100", "  seed: 1", 1, ["rates.seed 1", "evaluated seeds"]),
        ("  seed: 100", "  seed: 100\n  factors: [1]", 11, ["two or more different numbers"]),
        ("  seed: 100", "  seed: 100\n  row: [a]", 11, ["rates.row", "did you mean rows?"]),
        ("  a: {}", "  a.b: {}", 1, ["name 'a.b'"]),
        ("  a: {}", "  a: {rates_from: c}", 1, ["rows.a.rates_from c"]),
        ("experiment: generated_smoke", "# none", 1, ["rows a, b name no experiment"]),
    ],
)
def test_a_mistake_in_a_grid_is_named_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, parts: List[str]
) -> None:
    text = """# A grid.
title: small
experiment: generated_smoke
seeds: 0-1
rows:
  a: {}
  b: {set: [norm.proxy=false]}

rates:
  seed: 100
"""
    path = tmp_path / "grid.yaml"
    path.write_text(text.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_grid(str(path))
    message = str(caught.value)
    assert message.startswith(str(path))
    if line > 1:
        assert message.startswith(f"{path}:{line}: "), message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("selection", "part"),
    [
        (Selection(rows=["c"]), "--rows c: the grid has a, b"),
        (Selection(columns=["z"]), "--columns z: the grid has x, y"),
        (Selection(seeds=[100]), "100 is the seed of the learning-rate check"),
        (Selection(overrides=["norm.nme=group"]), "did you mean name?"),
        (Selection(overrides=["run.output_dir=x"]), "folders of their own"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(selection: Selection, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        build_plan(small(), selection)


def check_results(folder: Path, plan: Plan, losses: Dict[float, Optional[float]]) -> Results:
    results = Results("small", folder)
    for factor, loss in losses.items():
        path = results.path(Trial(plan.checked[0], 100, factor))
        path.parent.mkdir(parents=True, exist_ok=True)
        result: Dict[str, Any] = {"config": {}, "summary": None if loss is None else {}, "train_loss": loss}
        path.write_text(json.dumps({**result, "learning_rate": {"value": 0.1}}))
    return results


@pytest.mark.parametrize(
    ("losses", "factor"),
    [
        ({0.5: 0.3, 1.0: 0.2, 2.0: 0.4}, 1.0),
        ({0.5: 0.3, 1.0: 0.2, 2.0: 0.1}, 2.0),
        ({0.5: 0.3, 1.0: None, 2.0: None}, 0.5),
        ({0.5: 0.2, 1.0: 0.2, 2.0: 0.2}, 1.0),
    ],
)
def test_the_lowest_training_loss_chooses_the_rate(
    tmp_path: Path, losses: Dict[float, Optional[float]], factor: float
) -> None:
    plan = build_plan(small(), Selection())
    results = check_results(tmp_path, plan, losses)
    for cell in plan.cells:  # all of them refer to a.x
        chosen, record = choose_rate(plan, cell, results)
        assert chosen == factor
        assert record["checked_on"] == "a.x"
        assert "no test image" in record["rule"]


def test_without_all_checks_or_with_none_that_trained_no_rate_is_chosen(tmp_path: Path) -> None:
    plan = build_plan(small(), Selection())
    with pytest.raises(RateCheckError, match=r"a\.x rate x2 seed 100 has no result"):
        choose_rate(plan, plan.cells[0], check_results(tmp_path, plan, {0.5: 0.3, 1.0: 0.2}))
    with pytest.raises(RateCheckError, match="diverged"):
        choose_rate(plan, plan.cells[0], check_results(tmp_path, plan, {0.5: None, 1.0: None, 2.0: None}))


def test_the_last_epochs_loss_weighs_its_records_by_their_steps() -> None:
    records = [
        {"split": "train", "step": 4, "epoch": 1.0, "loss": 9.0},
        {"split": "eval", "step": 4, "epoch": 1, "loss": 7.0},
        {"split": "train", "step": 7, "epoch": 1.75, "loss": 2.0},
        {"split": "train", "step": 8, "epoch": 2.0, "loss": 4.0},
    ]
    assert last_epoch_loss(records, epochs=2) == pytest.approx((3 * 2.0 + 4.0) / 4)
    assert last_epoch_loss(records[:2], epochs=2) is None
    assert last_epoch_loss([*records[:3], {**records[3], "loss": None}], epochs=2) is None


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("optimizer.weight_decay=0.1", "optimizer.weight_decay was 0.0005, is now 0.1"),
        ("run.seed=1", "run.seed was 0, is now 1"),
        ("run.power_every_epochs=1", "run.power_every_epochs was None, is now 1"),
        ("data.workers=1", None),
        ("device.threads=4", None),
        ("run.log_every_steps=3", None),
        ("batch.micro_batch_size=8", None),
    ],
)
def test_a_result_counts_as_long_as_the_experiment_means_the_same(override: str, reason: Optional[str]) -> None:
    saved = load_config("generated_smoke").model_dump(mode="json")
    assert why_changed(saved, load_config("generated_smoke", [override])) == ([] if reason is None else [reason])


def test_a_setting_that_is_newer_than_a_result_had_its_default() -> None:
    saved = load_config("generated_smoke").model_dump(mode="json")
    del saved["averaging"]
    del saved["norm"]["kernel"]
    assert why_changed(saved, load_config("generated_smoke")) == []
    saved["norm"]["gone"] = 1
    assert why_changed(saved, load_config("generated_smoke")) == ["norm.gone has changed since the result was made"]


def test_a_file_that_is_no_result_is_refused(tmp_path: Path) -> None:
    plan = build_plan(small(), Selection())
    trial = plan.trials()[0]
    results = Results("small", tmp_path)
    assert results.read(trial) is None
    results.path(trial).parent.mkdir(parents=True)
    good: Dict[str, Any] = {"config": {}, "summary": {}, "train_loss": 1.0, "learning_rate": {"value": 0.1}}
    results.path(trial).write_text(json.dumps(good))
    assert results.read(trial) == good
    edits: List[Dict[str, Any]] = [{"config": 1}, {"summary": []}, {"train_loss": "1"}, {"train_loss": 10**400}]
    edits += [{"learning_rate": 0.1}, {"learning_rate": {}}, {"learning_rate": {"value": True}}]
    for text in ("", "[]", "{}", '{"config": 1', *(json.dumps({**good, **edit}) for edit in edits)):
        results.path(trial).write_text(text)
        with pytest.raises(ConfigError, match="remove it, and it is run again"):
            results.read(trial)


def test_the_table_counts_seeds_and_runs_that_diverged(tmp_path: Path) -> None:
    cells = (Cell("a", None, "generated_smoke", (), None), Cell("b", None, "generated_smoke", (), None))
    plan = Plan(cells, (0, 1, 2), (), (), 0)
    results = Results("small", tmp_path)
    for seed, top1 in enumerate((0.5, 0.7, None)):
        summary = None if top1 is None else {"top1": top1, "train": {"loss": 1.0 + seed}, "absent": ["0.5"]}
        text = json.dumps({"config": {}, "summary": summary, "train_loss": 1, "learning_rate": {"value": 0.1}})
        results.path(Trial(cells[0], seed)).write_text(text)
    lines = build_table(plan, results, ["top1", "train.loss", "absent"]).splitlines()
    assert lines[0] == "| row | top1 | train.loss | absent | learning rate | n |"
    # sample deviations of (.5, .7) and (1, 2)
    assert lines[2] == "| a | 0.6000 ± 0.1414 | 1.5000 ± 0.7071 | - | 0.1 | 2, 1 diverged |"
    assert lines[3] == "| b | - | - | - | - | 0 |"
