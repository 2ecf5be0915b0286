"""Checkpoints with the right keys and something wrong behind them: refused by one message, or as good as before."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import evaluate
import train
from configs import Config
from datasets import build_datasets
from experiment.checkpoint import load_checkpoint
from experiment.checkpoint_schema import check_state
from experiment.prepare import build_network
from experiment.progress import Progress
from normact import affine_parameter_names
from training.averaging import WeightAverage
from training.optimizer import build_optimizer, load_optimizer_state
from training.weights import CheckpointError, load_model_state

State = Dict[str, Any]
Row = Tuple[str, Callable[[Dict[str, Any]], None], str]  # what is wrong, how it is made, and what is said
SETTINGS = ["data.num_train_images=128", "data.num_eval_images=20", "schedule.epochs=3", "run.checkpoint_every_steps=1"]
SETTINGS += ["averaging.every=step", "averaging.decay=0.5", "run.evaluate_training_images=0", "optimizer.momentum=null"]
SETTINGS += ["optimizer.name=adamw", "optimizer.betas=[0.9, 0.99]", "optimizer.eps=1e-6"]  # it counts its updates
COMMAND = ["--config", "generated_smoke", "--device", "cpu", *(part for key in SETTINGS for part in ("--set", key))]
WEIGHT = "stages.0.0.conv1.weight"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of 3 epochs of 2 steps, as it was after step 3."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train.main([*COMMAND, "--output-dir", str(folder)]) == 0
    for path in (folder / "checkpoints").iterdir():
        if path.stem != "step_00000003":
            path.unlink()
    return folder


def set_to(*keys: Any) -> Callable[[State], None]:
    """Set the entry at keys[:-1] to keys[-1]."""

    def change(state: State) -> None:
        for key in keys[:-2]:
            state = state[key]
        state[keys[-2]] = keys[-1]

    return change


def changed(*keys: Any) -> Callable[[State], None]:
    """Replace the entry at keys[:-1] by what keys[-1] makes of it."""

    def change(state: State) -> None:
        for key in keys[:-2]:
            state = state[key]
        state[keys[-2]] = keys[-1](state[keys[-2]])

    return change


def in_both(function: Callable[[Tensor], Tensor]) -> Callable[[State], None]:
    """Return the same to a weight and to its average."""

    def change(state: State) -> None:
        for weights in (state["model"], state["average"]["weights"]):
            weights[WEIGHT] = function(weights[WEIGHT])

    return change


def without(*keys: Any) -> Callable[[State], None]:
    def change(state: State) -> None:
        for key in keys[:-1]:
            state = state[key]
        del state[keys[-1]]

    return change


REFUSED: List[Row] = [
    ("a list for weights", set_to("model", [1]), "model is a list of 1, expected a dictionary"),
    ("no weights", set_to("model", {}), "model is a dictionary of 0, expected at least 1"),
    ("a number for a weight", set_to("model", WEIGHT, 3.0), f"model.{WEIGHT} is 3.0, expected a tensor"),
    ("complex weights", in_both(lambda weight: weight.to(torch.complex64)), "expected a dense tensor of real numbers"),
    (
        "sparse weights",
        in_both(lambda weight: weight.to_sparse()),
        "asks for the global torch.serialization._get_layout: refused",
    ),
    ("a text for the optimizer", set_to("optimizer", "sgd"), "optimizer is 'sgd', expected a dictionary"),
    ("no groups", set_to("optimizer", "param_groups", []), "optimizer.param_groups is a list of 0"),
    ("a number of updates", set_to("optimizer", "state", 0, "step", 9), "optimizer.state.0.step is 9, and step 3"),
    ("a text in its state", set_to("optimizer", "state", 0, "exp_avg", "x"), "optimizer.state.0.exp_avg is 'x'"),
    ("a list for the average", set_to("average", []), "average is a list of 0, expected a dictionary"),
    (
        "no average",
        set_to("average", None),
        "average is None, and config.averaging.decay 0.5; both must be present, or neither",
    ),
    ("half an average", without("average", "weights", WEIGHT), f"average.weights.{WEIGHT} is None"),
    ("a text for the step", set_to("step", "3"), "step is '3', expected a whole number"),
    ("another step", set_to("step", 4), "step is 4, and progress.step 3; they must be equal"),
    ("a step before 0", set_to("step", -3), "step is -3, expected 0 or more"),
    ("an evaluation to come", set_to("progress", "evaluated_step", 4), "progress.evaluated_step is 4, which is after"),
    ("a list for the progress", set_to("progress", []), "progress is a list of 0, expected a dictionary"),
    ("half the progress", without("progress", "seconds"), "progress.seconds is missing"),
    ("three sums", changed("progress", "epoch", lambda sums: sums[:3]), "progress.epoch is a tensor of float64 (3,)"),
    ("sums of no number", changed("progress", "epoch", lambda sums: sums / 0), "progress.epoch is a tensor of float64"),
    ("two means", set_to("progress", "evaluation", [0.1, 0.2]), "progress.evaluation is a list of 2"),
    ("a text for the seed", set_to("seed", "0"), "seed is '0', expected a whole number"),
    ("another seed", set_to("seed", 1), "seed is 1, and config.run.seed 0"),
    ("a list for the configuration", set_to("config", []), "config is a list of 0, expected a dictionary"),
    ("a number for a section", set_to("config", "model", 3), "config.model is 3, expected a dictionary"),
    ("a tensor for a setting", set_to("config", "optimizer", "betas", torch.ones(2)), "optimizer.betas is a tensor"),
    ("a set for a setting", set_to("config", "ipu", "popart", {1: 2}), "ipu.popart is a dictionary"),
    ("a list for the norm", set_to("norm", ["group"]), "norm is a list of 1, expected a dictionary"),
    ("a number for the facts", set_to("execution", 1), "execution is 1, expected a dictionary"),
    ("a text for the classes", set_to("class_names", "ab"), "class_names is 'ab', expected a list"),
    ("numbers for classes", set_to("class_names", [1] * 10), "class_names.0 is 1, expected a text"),
    ("nine classes", changed("class_names", lambda names: names[:9]), "class_names has 9 names, and model.classifier"),
    ("no fingerprint", set_to("data_fingerprint", None), "data_fingerprint is None, expected a text"),
    ("a missing key", without("seed"), "lacks the keys ['seed']"),
    ("int8 weights", in_both(lambda weight: weight.to(torch.int8)), f"{WEIGHT}"),
    ("a weight of another shape", in_both(lambda weight: weight[:1]), "1 of another shape"),
]
# What only continuing uses.
OF_OPTIMIZER: List[Row] = [
    ("an empty state", set_to("optimizer", "state", {}), "of parameter 0 it keeps nothing, expected ['exp_avg', "),
    ("a state of fewer", without("optimizer", "state", 5), "of parameter 5 it keeps nothing"),
    ("a state of one more", set_to("optimizer", "state", 99, {}), "it has a state of parameter 99"),
    (
        "another shape",
        changed("optimizer", "state", 0, "exp_avg", lambda mean: mean[:1]),
        "exp_avg of parameter 0 is a tensor of float32 (1, 3, 3, 3), expected real numbers of shape (8, 3, 3, 3)",
    ),
    (
        "whole numbers",
        changed("optimizer", "state", 0, "exp_avg", lambda mean: mean.to(torch.int8)),
        "exp_avg of parameter 0 is a tensor of int8",
    ),
    (
        "of another optimizer",
        changed("optimizer", "state", 0, lambda kept: {"momentum_buffer": kept["exp_avg"]}),
        "of parameter 0 it keeps ['momentum_buffer']",
    ),
    (
        "other settings",
        set_to("optimizer", "param_groups", 0, "betas", (0.5, 0.5)),
        "group 0 has betas (0.5, 0.5), expected (0.9, 0.99)",
    ),
    ("one group", without("optimizer", "param_groups", 1), "it has groups of [25] parameters, expected [25, 14]"),
    (
        "doubled parameters",
        set_to("optimizer", "param_groups", 0, "params", [0] * 25),
        "the numbers of its parameters are not whole and different",
    ),
    ("a switch", set_to("optimizer", "param_groups", 0, "fused", "yes"), "group 0 has fused 'yes'"),
    ("no rate", set_to("optimizer", "param_groups", 1, "lr", None), "group 1 has lr None, expected a number"),
    ("an eps", set_to("optimizer", "param_groups", 0, "eps", 1), "group 0 has eps 1, expected 1e-06"),
]
# What depends on the run that goes on, and one of each of the others.
RESUMED: List[Row] = [
    ("another norm", set_to("norm", "eps", 0.1), "eps 0.1 in the checkpoint, 1e-05 here"),
    ("an epoch's middle", set_to("progress", "evaluated_step", 1), "with epochs finished to step 1"),
    ("another experiment", set_to("config", "optimizer", "learning_rate", 1.0), "optimizer.learning_rate was 1.0"),
    REFUSED[0],
    OF_OPTIMIZER[0],
]


def damaged(run_folder: Path, change: Callable[[State], None], target: Path) -> None:
    """Write the changed checkpoint with a manifest that fits it: nothing but what it holds can tell."""
    state = load_checkpoint(run_folder / "checkpoints" / "step_00000003.pt")
    change(state)
    torch.save(state, target)
    data = target.read_bytes()
    manifest = {"format": 3, "step": 3, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    target.with_suffix(".json").write_text(json.dumps(manifest))


def said(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    assert error.count("\n") == 1, error
    return error


def refusal(run_folder: Path, use: Callable[[State], None], change: Callable[[State], None], tmp_path: Path) -> str:
    """Return what is said of the run's checkpoint after `change`."""
    path = tmp_path / "step_00000003.pt"
    damaged(run_folder, change, path)
    with pytest.raises(CheckpointError) as caught:
        use(load_checkpoint(path))
    return str(caught.value)


@pytest.mark.parametrize("name, change, message", REFUSED, ids=[row[0] for row in REFUSED])
def test_what_is_no_checkpoint_is_told_by_the_entry_that_is_wrong(
    run_folder: Path,
    use: Callable[[State], None],
    tmp_path: Path,
    name: str,
    change: Callable[[State], None],
    message: str,
) -> None:
    assert message in refusal(run_folder, use, change, tmp_path)


@pytest.mark.parametrize("name, change, message", OF_OPTIMIZER, ids=[row[0] for row in OF_OPTIMIZER])
def test_the_state_of_another_optimizer_is_told_by_what_differs(
    run_folder: Path,
    use: Callable[[State], None],
    tmp_path: Path,
    name: str,
    change: Callable[[State], None],
    message: str,
) -> None:
    told = refusal(run_folder, use, change, tmp_path)
    assert f"the saved optimizer is not that of this run: {message}" in told


@pytest.mark.parametrize("row", REFUSED[::9], ids=[row[0] for row in REFUSED[::9]])
def test_evaluating_it_is_one_message_and_code_4(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Row
) -> None:
    damaged(run_folder, row[1], tmp_path / "step_00000003.pt")
    assert evaluate.main([str(tmp_path / "step_00000003.pt")]) == 4
    error = said(capsys)
    assert row[2] in error and "step_00000003.pt" in error


@pytest.mark.parametrize("row", RESUMED, ids=[row[0] for row in RESUMED])
def test_continuing_from_it_is_one_message_and_code_4(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Row
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    damaged(run_folder, row[1], folder / "checkpoints" / "step_00000003.pt")
    assert train.main([*COMMAND, "--output-dir", str(folder), "--resume"]) == 4
    assert row[2] in said(capsys)
    assert json.loads((folder / "status.json").read_text())["exit_code"] == 4


# ---- any entry ----

# What may be missing or of any value: checkpoints of earlier versions lack it, or it only tells.
FREE = {("progress", "validation"), ("progress", "best"), ("progress", "untimed_steps")}
FREE |= {("progress", "interval_untimed_steps")}


@pytest.fixture(scope="module")
def intact(run_folder: Path) -> State:
    return load_checkpoint(run_folder / "checkpoints" / "step_00000003.pt")


@pytest.fixture(scope="module")
def use(intact: State) -> Callable[[State], None]:
    """Return what evaluating and continuing make of a checkpoint."""
    config = Config.model_validate(intact["config"])
    _, network = build_network(config, build_datasets(config.data, 0))

    def run(state: State) -> None:
        check_state(state, "it")
        load_model_state(network, state["model"])
        optimizer = build_optimizer(config.optimizer, network, affine_parameter_names(network))
        load_optimizer_state(optimizer, state["optimizer"])
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        Progress.from_state(state["progress"])
        WeightAverage.from_state(state["average"], 0.5, network.state_dict()).update(network.state_dict())

    return run


def entries(value: Any, path: Tuple[Any, ...] = ()) -> Iterator[Tuple[Any, ...]]:
    """Yield the paths of all entries of nested dictionaries and lists."""
    found = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in found:
        yield (*path, key)
        yield from entries(item, (*path, key))


WRONG = [None, True, -1, 2**70, 0.5, float("nan"), "x", b"x", [], {}, [None], {"x": 1}, {3: [0.5]}]
OF_TENSORS: List[Callable[[Tensor], Tensor]] = [
    lambda tensor: tensor[None],
    lambda tensor: torch.cat([tensor.reshape(-1), torch.ones(1)]),
    lambda tensor: tensor.to(torch.complex64),
    lambda tensor: tensor.to(torch.int8),
    lambda tensor: tensor.to("meta"),
]


@settings(
    derandomize=True, deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_entry_that_is_missing_or_of_another_type_or_shape_is_refused(
    intact: State, use: Callable[[State], None], data: st.DataObject
) -> None:
    state = copy.deepcopy(intact)
    used = [path for path in entries(state) if path[0] not in ("config", "execution", "norm") or len(path) == 1]
    path = data.draw(st.sampled_from(used))
    holder = state
    for key in path[:-1]:
        holder = holder[key]
    before = holder[path[-1]]
    kinds = ["missing", "wrong"] + (["tensor"] if isinstance(before, Tensor) else [])
    kind = data.draw(st.sampled_from(kinds))
    if kind == "missing":
        del holder[path[-1]]
    elif kind == "tensor":
        holder[path[-1]] = data.draw(st.sampled_from(OF_TENSORS))(before)
    else:
        holder[path[-1]] = data.draw(st.sampled_from([value for value in WRONG if type(value) is not type(before)]))
    is_setting = path[:2] == ("optimizer", "param_groups") and len(path) >= 4 and path[3] != "params"
    try:
        use(state)
    except CheckpointError as error:
        assert len(str(error)) < 1000
    else:
        after = holder[path[-1]] if kind != "missing" else None
        is_number = type(before) is float and type(after) is int  # a whole number is a number
        is_scalar = isinstance(before, Tensor) and before.numel() == 1  # AdamW's count
        assert is_setting or path[:2] in FREE or is_number or is_scalar, (path, kind, after)
