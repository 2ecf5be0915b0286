"""run.power_every_epochs: what is logged, that training is the same to the bit, resumption, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch

import train
from configs import ConfigError, load_config
from experiment.checkpoint import load_checkpoint
from experiment.power_log import power_numbers
from experiment.run_folder import RunFolder
from experiment.run_output import RunOutput
from experiment.tracker import Trackers

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--config", "generated_smoke", "--device", "cpu"]
SMALL += ["--set", "data.num_train_images=256", "--set", "data.num_eval_images=61", "--set", "schedule.epochs=3"]
POWER = ["--set", "run.power_every_epochs=2", "--set", "run.power_images=30"]


def run(folder: Path, *arguments: str) -> int:
    return train.main([*SMALL, "--output-dir", str(folder), *arguments])


def records(folder: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in (folder / "power.jsonl").read_text().splitlines()]


def weights(folder: Path, step: int = 12) -> Dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / f"step_{step:08d}.pt")["model"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, *POWER, "--set", "run.keep_checkpoints=9") == 0
    return folder


def test_power_is_logged_at_the_start_at_its_epochs_and_at_the_end(whole: Path) -> None:
    found = records(whole)
    assert [(record["step"], record["epoch"], record["images"]) for record in found] == [
        (0, 0, 30),
        (8, 2, 30),
        (12, 3, 30),
    ]
    names = [layer["name"] for layer in found[0]["layers"]]
    assert names[0] == "stages.0.0.norm1"
    assert names[-1] == "norm"
    assert len(names) == 7  # resnet8: three blocks of two norms, and the last
    for record in found:
        for layer in record["layers"]:
            assert 0.9 < sum(layer["power"]) < 1 + 1e-5  # group norm with eps 1e-5
            assert 0 < layer["effective_channels"] <= 1 + 1e-12
    assert found[0]["layers"][-1]["power"] != found[-1]["layers"][-1]["power"]
    assert (whole / "power.png").stat().st_size > 1000


def test_training_is_the_same_to_the_bit(whole: Path, tmp_path: Path) -> None:
    assert run(tmp_path) == 0
    assert not (tmp_path / "power.jsonl").exists()
    for name, value in weights(tmp_path).items():
        assert torch.equal(value, weights(whole)[name]), name


@pytest.mark.parametrize("step", [4, 8])
def test_a_resumed_run_has_the_same_records_once_each(whole: Path, tmp_path: Path, step: int) -> None:
    folder = tmp_path / "run"
    assert run(folder, *POWER, "--set", "run.keep_checkpoints=9") == 0
    for path in (folder / "checkpoints").iterdir():
        if int(path.stem.split("_")[1]) > step:
            path.unlink()
    (folder / "summary.json").unlink()
    assert run(folder, *POWER, "--resume") == 0
    assert records(folder) == records(whole)


def test_a_run_without_a_checkpoint_logs_its_initial_weights_once(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    first = (whole / "power.jsonl").read_text().splitlines()[0]
    (folder / "power.jsonl").write_text(first + "\n")
    assert run(folder, *POWER, "--resume") == 0
    assert records(folder) == records(whole)


def test_two_processes_log_what_one_does(whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "train.py", *SMALL, *POWER]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [*command, "--output-dir", str(tmp_path), "--set", "schedule.epochs=1"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    one, two = records(whole)[0], records(tmp_path)[0]
    assert two["images"] == 30
    for left, right in zip(one["layers"], two["layers"]):
        assert left["name"] == right["name"]
        # The same initial weights; convolutions of other batch sizes round differently in float32.
        assert right["power"] == pytest.approx(left["power"], rel=1e-4, abs=1e-7)


def test_the_number_of_images_alone_is_refused() -> None:
    with pytest.raises(ConfigError, match="power_images = 10 has no effect with no power_every_epochs"):
        load_config("generated_smoke", ["run.power_images=10"])


def test_a_compiled_network_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, *POWER, "--set", "device.compile=true") == 2
    assert "use `python analyze.py power --run` afterwards" in capsys.readouterr().err
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_tracker_is_given_every_layer(tmp_path: Path) -> None:
    logged: List[Dict[str, Any]] = []

    class RecordingTracker:
        def log(self, record: Dict[str, Any]) -> None:
            logged.append(record)

        def close(self) -> None:
            pass

    tracker: Any = RecordingTracker()
    with RunOutput(RunFolder(tmp_path), is_primary=True, resume=False) as output:
        output.start("", lambda past: Trackers([tracker]), step=0, evaluated_step=0, steps=1, images_per_step=1)
        layers = [{"name": "norm1", "power": [0.1, 0.2, 0.3, 0.4]}]
        output.track(power_numbers({"split": "power", "step": 0, "epoch": 0, "images": 5, "layers": layers}))
    assert logged == [
        {"split": "power", "step": 0, "epoch": 0, "norm1/P1": 0.1, "norm1/P2": 0.2, "norm1/P3": 0.3, "norm1/P4": 0.4}
    ]
