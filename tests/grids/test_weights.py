"""How far weights of runs are apart, and that micro-batches are a matter of execution."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import train
from grids import weights
from grids.weights import largest_difference


def test_the_difference_is_relative_to_the_largest_weight_of_its_tensor() -> None:
    first = {
        "a": torch.tensor([1.0, -4.0]),
        "b": torch.tensor([100.0]),
        "zero": torch.zeros(2),
        "count": torch.tensor(3),
    }
    second = {
        "a": torch.tensor([1.5, -4.0]),
        "b": torch.tensor([101.0]),
        "zero": torch.zeros(2),
        "count": torch.tensor(5),
    }
    assert largest_difference(second, first) == 0.125  # .5 of 4; 1 of 100 is less


@pytest.mark.parametrize(
    "other", [{"a": torch.ones(3)}, {"b": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(2)}]
)
def test_weights_of_another_network_are_refused(other: object) -> None:
    with pytest.raises(ValueError, match="not the same network"):
        largest_difference(other, {"a": torch.ones(2)})


def test_group_norm_with_pn_gives_the_same_weights_with_every_micro_batch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A smooth activation: with ReLU rounding decides the sign of what is nearly zero; gradients move by finite steps.
    run = ["--config", "generated_smoke", "--device", "cpu", "--set", "model.activation=silu"]
    run += ["--set", "data.num_train_images=256", "--set", "data.num_eval_images=10", "--set", "schedule.epochs=1"]
    for size in (1, 2, 16, 64):
        folder = str(tmp_path / f"micro{size}")
        assert train.main([*run, "--set", f"batch.micro_batch_size={size}", "--output-dir", folder]) == 0
    capsys.readouterr()
    assert weights.main([str(tmp_path)]) == 0
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [name.strip() for name, _ in rows] == ["micro16", "micro2", "micro64"]
    # Four updates: 2e-6 was seen, and 3e-2 with ReLU; other processors may round to some times that.
    assert all(float(difference) < 1e-4 for _, difference in rows)


def test_a_folder_without_two_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert weights.main([str(tmp_path)]) == 4
    assert "two or more are needed" in capsys.readouterr().err
