"""Gradient clipping: the norm over all weights, once for each update, however the batch is cut up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from torch import nn

import train
from experiment.checkpoint import load_checkpoint, newest_checkpoint
from training.clipping import clip_gradients

ROOT = Path(__file__).resolve().parent.parent.parent
SETTINGS = ["data.num_train_images=128", "data.num_eval_images=32", "schedule.epochs=1", "run.log_every_steps=1"]
SETTINGS += ["run.evaluate_training_images=0", "optimizer.momentum=0", "optimizer.weight_decay=0"]
COMMAND = ["--config", "generated_smoke", "--device", "cpu"] + [part for word in SETTINGS for part in ("--set", word)]


def parameters(*gradients: List[float]) -> List[nn.Parameter]:
    made = [nn.Parameter(torch.zeros(len(values))) for values in gradients]
    for parameter, values in zip(made, gradients):
        parameter.grad = torch.tensor(values)
    return made


def test_a_long_gradient_is_scaled_to_the_norm_over_all_tensors() -> None:
    made = [*parameters([3.0, 0.0], [0.0, 4.0]), nn.Parameter(torch.zeros(2))]  # the last has no gradient
    assert float(clip_gradients(made, 1.0)) == 5.0
    grads = [parameter.grad.tolist() for parameter in made[:2] if parameter.grad is not None]
    # 1 / (5 + 1e-6), which is 2e-7 below 1 / 5; float32 rounding
    assert grads == [[pytest.approx(0.6, rel=1e-6), 0.0], [0.0, pytest.approx(0.8, rel=1e-6)]]


def test_a_short_gradient_is_left_to_the_bit() -> None:
    made = parameters([0.3], [0.1])
    clip_gradients(made, 1.0)
    assert [parameter.grad.tolist() for parameter in made if parameter.grad is not None] == [
        torch.tensor([0.3]).tolist(),
        torch.tensor([0.1]).tolist(),
    ]


def records(folder: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def norms(folder: Path) -> List[float]:
    return [record["gradient_norm"] for record in records(folder) if record["split"] == "train"]


def weights(folder: Path) -> Dict[str, torch.Tensor]:
    path = newest_checkpoint(folder / "checkpoints")
    assert path is not None
    return load_checkpoint(path)["model"]


def run(folder: Path, *arguments: str) -> Path:
    words = [part for word in arguments for part in ("--set", word)]
    assert train.main([*COMMAND, "--output-dir", str(folder), *words]) == 0
    return folder


def test_an_update_of_clipped_sgd_is_as_long_as_learning_rate_times_norm(tmp_path: Path) -> None:
    one_step = ["batch.global_batch_size=128", "schedule.name=constant", "optimizer.learning_rate=0.5"]
    start = weights(run(tmp_path / "start", *one_step, "optimizer.learning_rate=1e-30"))
    moved = weights(run(tmp_path / "moved", *one_step, "optimizer.clip_norm=0.01"))
    length = sum(float((tensor - start[name]).double().square().sum()) for name, tensor in moved.items()) ** 0.5
    assert norms(tmp_path / "moved")[0] > 0.02
    # warm-up scales the rate; w - lr g rounds each weight near 1 to 6e-8, 20,000 of them by 1e-5 together
    rate = records(tmp_path / "moved")[0]["learning_rate"]
    assert length == pytest.approx(rate * 0.01, rel=1e-2)


def test_accumulation_and_processes_clip_the_gradient_of_the_global_batch(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", "optimizer.clip_norm=0.1", "batch.micro_batch_size=64")
    cut = run(tmp_path / "cut", "optimizer.clip_norm=0.1", "batch.micro_batch_size=16")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "train.py"), *COMMAND, "--output-dir", str(tmp_path / "two")]
    command += ["--set", "optimizer.clip_norm=0.1", "--set", "batch.micro_batch_size=16"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert min(norms(whole)) > 0.2, "every update is to be clipped"
    for other in (cut, tmp_path / "two"):
        # Sums in another order: float32 rounding, which two updates enlarge a little.
        assert norms(other) == pytest.approx(norms(whole), rel=1e-4)
        for name, tensor in weights(whole).items():
            torch.testing.assert_close(weights(other)[name], tensor, rtol=1e-4, atol=1e-6)


def test_without_clipping_no_norm_is_recorded(tmp_path: Path) -> None:
    assert all("gradient_norm" not in record for record in records(run(tmp_path / "plain")))


def test_a_gradient_whose_norm_overflows_is_no_update_of_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "backends.torch_native.session.clip_gradients", lambda parameters, limit: torch.tensor(float("inf"))
    )
    assert train.main([*COMMAND, "--output-dir", str(tmp_path), "--set", "optimizer.clip_norm=1.0"]) == 5
    assert "is not finite at step 0" in capsys.readouterr().err


def test_ipus_refuse_it_also_in_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "generated_smoke", "--device", "ipu_emulator", "--set", "optimizer.clip_norm=1.0"]
    assert train.main([*arguments, "--dry-run"]) == 2
    assert "optimizer.clip_norm 1.0 limits the gradient, which PopTorch does for none of these" in (
        capsys.readouterr().err
    )
