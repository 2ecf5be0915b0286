"""Averages of the weights: their numbers by hand, and that they are what is evaluated, saved and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train
from configs import ConfigError, load_config
from experiment.checkpoint import load_checkpoint, newest_checkpoint
from training.averaging import WeightAverage


def averaged(values: List[float], decay: float) -> float:
    average = WeightAverage(decay)
    for value in values:
        average.update({"w": torch.tensor([value], dtype=torch.float64)})
    return float(average.weights["w"])


def test_an_average_equals_hand_computed_numbers() -> None:
    # decay .5, weights 4, 8, 16: shares 1/4, 1/2, 1 of 7/4.
    assert averaged([4.0], 0.5) == 4.0
    assert averaged([4.0, 8.0, 16.0], 0.5) == pytest.approx((1 + 4 + 16) / 1.75, rel=1e-14)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.sampled_from([0.3, 0.97, 0.9999]))
def test_an_average_is_the_normalized_exponential_sum(values: List[float], decay: float) -> None:
    shares = [decay ** (len(values) - 1 - index) for index in range(len(values))]
    expected = sum(share * value for share, value in zip(shares, values)) / sum(shares)
    assert averaged(values, decay) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_running_statistics_are_averaged_and_counts_are_those_of_the_last_weights() -> None:
    norm = torch.nn.BatchNorm1d(2)
    average = WeightAverage(0.5)
    average.update(norm.state_dict())
    norm.running_mean.fill_(3.0)
    norm.num_batches_tracked.fill_(7)
    average.update(norm.state_dict())
    assert average.weights["running_mean"].tolist() == [2.0, 2.0]  # (0 + 2 * 3) / 3
    assert int(average.weights["num_batches_tracked"]) == 7


def test_the_weights_taken_in_are_copied() -> None:
    weight = torch.ones(1)
    average = WeightAverage(0.5)
    average.update({"w": weight})
    weight.fill_(5.0)
    assert average.weights["w"].item() == 1.0


# ---- in a run ----

ROOT = Path(__file__).resolve().parents[2]
TINY = ["data.num_train_images=192", "data.num_eval_images=64", "schedule.epochs=3", "run.checkpoint_every_steps=2"]
BATCH_NORM = ["norm.name=batch", "norm.proxy=false", "norm.num_groups=null", "batch.norm_batch_size=64"]
STEP = ["averaging.every=step", "averaging.decay=0.7"]
EPOCH = ["averaging.every=epoch", "averaging.decay=0.7"]
RANDOM = ["model.name=efficientnet_small_g16", "model.width=null", "regularization.mixup_alpha=0.4"]
RANDOM += ["regularization.cutmix_nominal=0.8", "regularization.drop_rate=0.3", "regularization.drop_path_rate=0.3"]
RANDOM += ["optimizer.name=rmsprop", "optimizer.learning_rate=0.01", "optimizer.square_decay=0.9", "optimizer.eps=1e-3"]


def run(folder: Path, overrides: List[str], *options: str) -> int:
    arguments = ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(folder), *options]
    return train.main(arguments + [part for override in TINY + overrides for part in ("--set", override)])


def final_checkpoint(folder: Path) -> Dict[str, Any]:
    path = newest_checkpoint(folder / "checkpoints")
    assert path is not None
    return load_checkpoint(path)


def losses(folder: Path, split: str) -> List[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["split"] == split]


def test_the_average_is_evaluated_and_training_is_not_changed_by_it(tmp_path: Path) -> None:
    assert run(tmp_path / "plain", BATCH_NORM) == 0
    assert run(tmp_path / "average", BATCH_NORM + EPOCH) == 0
    plain, average = final_checkpoint(tmp_path / "plain"), final_checkpoint(tmp_path / "average")
    assert all(torch.equal(tensor, average["model"][name]) for name, tensor in plain["model"].items())
    assert losses(tmp_path / "plain", "train") == losses(tmp_path / "average", "train")
    first, *later = zip(losses(tmp_path / "plain", "eval"), losses(tmp_path / "average", "eval"))
    assert first[0] == first[1]  # the average of one epoch's weights
    assert all(one != other for one, other in later)
    epochs = [load_checkpoint(tmp_path / "plain" / "checkpoints" / f"step_{3 * epoch:08d}.pt") for epoch in (1, 2, 3)]
    for name, tensor in average["average"]["weights"].items():
        shares = [0.49, 0.7, 1.0]
        expected = sum(share * epoch["model"][name].double() for share, epoch in zip(shares, epochs)) / sum(shares)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)


def without(step: int, folder: Path) -> None:
    """Remove the checkpoints after `step` and what only a finished run has, as if the run had been killed."""
    for path in (folder / "checkpoints").iterdir():
        if int(path.stem.partition("_")[2]) > step:
            path.unlink()
    (folder / "summary.json").unlink()


@pytest.mark.parametrize("every", [STEP, EPOCH], ids=["step", "epoch"])
def test_a_resumed_run_has_the_same_average_to_the_bit(tmp_path: Path, every: List[str]) -> None:
    assert run(tmp_path / "straight", RANDOM + every) == 0
    assert run(tmp_path / "resumed", RANDOM + every) == 0
    without(5, tmp_path / "resumed")
    assert run(tmp_path / "resumed", RANDOM + every, "--resume") == 0
    straight, resumed = (final_checkpoint(tmp_path / name) for name in ("straight", "resumed"))
    assert straight["average"]["updates"] == resumed["average"]["updates"] == (9 if every is STEP else 3)
    for part in (lambda saved: saved["model"], lambda saved: saved["average"]["weights"]):
        assert all(torch.equal(tensor, part(resumed)[name]) for name, tensor in part(straight).items())
    assert losses(tmp_path / "straight", "eval") == losses(tmp_path / "resumed", "eval")


@pytest.mark.slow
@pytest.mark.parametrize("every", [STEP, EPOCH], ids=["step", "epoch"])
def test_two_processes_mix_drop_and_average_as_one_does(tmp_path: Path, every: List[str]) -> None:
    settings = [part for override in TINY + RANDOM + every for part in ("--set", override)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    command += ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(tmp_path / "two"), *settings]
    process = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "replicas 2" in process.stdout + process.stderr
    assert run(tmp_path / "one", RANDOM + every) == 0
    one, two = final_checkpoint(tmp_path / "one"), final_checkpoint(tmp_path / "two")
    assert one["average"]["updates"] == two["average"]["updates"]
    # float32: the sum over the global batch is cut in two, and nine updates let that rounding grow.
    for part in (lambda saved: saved["model"], lambda saved: saved["average"]["weights"]):
        for name, tensor in part(one).items():
            torch.testing.assert_close(part(two)[name], tensor, rtol=1e-3, atol=1e-4)
    for split in ("train", "eval"):
        assert losses(tmp_path / "two", split) == pytest.approx(losses(tmp_path / "one", split), rel=1e-4)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("averaging.decay=0.9", "decay = 0.9 has no effect with averaging every never"),
        ("averaging.every=step", "needs decay"),
    ],
)
def test_an_average_that_is_half_described_is_refused(override: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load_config("generated_smoke", [override])
