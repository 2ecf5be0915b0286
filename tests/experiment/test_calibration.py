"""A run with group norm and Proxy Normalization that begins with the weights of a batch norm run."""

from pathlib import Path
from typing import List

import pytest
import torch
from real_runs import final, run

from experiment.checkpoint import load_checkpoint

BATCH = ["norm.name=batch", "norm.proxy=false", "norm.num_groups=null", "batch.norm_batch_size=64"]


def settings(*given: str) -> List[str]:
    return [word for setting in given for word in ("--set", setting)]


@pytest.fixture(scope="module")
def batch_norm_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("batch_norm") / "run"
    assert run(folder, *settings(*BATCH, "schedule.epochs=1")) == 0
    return folder


def test_a_run_starts_from_batch_norm_with_calibrated_norms(
    batch_norm_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start = [f"model.pretrained={batch_norm_run}", "model.calibration_images=64", "schedule.epochs=1"]
    # A step this small leaves the weights where calibration put them.
    caplog.set_level("INFO")
    assert run(tmp_path / "run", *settings(*start, "optimizer.learning_rate=1e-12", "schedule.warmup_epochs=0.0")) == 0
    assert "norms calibrated from batch norm over 64 training images; Proxy Normalization: 7 taken back" in caplog.text
    (original,) = (final(batch_norm_run, 4),)
    weights = final(tmp_path / "run", 4)["model"]
    # The stem is in front of every norm: its weights are the original's, and the proxies are no longer at zero.
    torch.testing.assert_close(weights["stem.conv.weight"], original["model"]["stem.conv.weight"], rtol=0, atol=1e-8)
    proxies = [values for name, values in weights.items() if name.endswith("proxy_beta")]
    assert len(proxies) == 7 and all(values.abs().max() > 1e-3 for values in proxies)


def test_without_calibration_the_norms_do_not_fit_and_batch_norm_needs_none(
    batch_norm_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = f"model.pretrained={batch_norm_run}"
    assert run(tmp_path / "a", *settings(start)) == 4
    assert run(tmp_path / "b", *settings(start, "model.calibration_images=64", *BATCH)) == 2
    assert "model.calibration_images: calibration matches the moments of a batch norm" in capsys.readouterr().err
    assert run(tmp_path / "c", *settings("model.calibration_images=64")) == 2
    assert "calibration_images 64 has no effect without pretrained" in capsys.readouterr().err


def test_weights_of_another_norm_than_batch_are_refused(
    batch_norm_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "group", *settings("schedule.epochs=1")) == 0
    start = [f"model.pretrained={tmp_path / 'group'}", "model.calibration_images=64"]
    assert run(tmp_path / "again", *settings(*start)) == 4
    assert load_checkpoint(max((tmp_path / "group" / "checkpoints").glob("*.pt")))["norm"]["name"] == "group"
    assert "batch" in capsys.readouterr().err
