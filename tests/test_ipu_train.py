"""train.py on emulated IPUs in real processes: instances, Horovod, moving a run between devices, missing PopTorch."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch

import train
from configs import config_names, load_config
from training.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--config", "generated_smoke", "--set", "data.num_train_images=64", "--set", "data.num_eval_images=37"]
SMALL += ["--set", "batch.global_batch_size=32", "--set", "schedule.epochs=2", "--set", "run.checkpoint_every_steps=1"]
EMULATOR = ["--device", "ipu_emulator", "--set", "ipu.splits=[stages.1.0]", "--set", "batch.micro_batch_size=2"]
EMULATOR += ["--set", "ipu.ipus=8"]  # 4 replicas x 2 stages, accumulation 4


def run(folder: Path, *arguments: str) -> int:
    return train.main([*SMALL, "--output-dir", str(folder), *arguments])


def started(
    launcher: List[str], folder: Path, *arguments: str, **environment: str
) -> "subprocess.CompletedProcess[str]":
    command = [*launcher, str(ROOT / "train.py"), *SMALL, "--output-dir", str(folder), *arguments]
    values = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=ROOT, env=values, text=True, capture_output=True, timeout=240, check=False)


def final(folder: Path) -> Dict[str, Any]:
    return load_checkpoint(folder / "checkpoints" / "step_00000004.pt")


def rows(folder: Path) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(first: Path, second: Path) -> None:
    """float32 sums in another order differ by 1e-7; where that moves a value across a ReLU's kink, by about 1e-5."""
    left, right = final(first)["model"], final(second)["model"]
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, rtol=2e-3, atol=5e-5)
    for one, other in zip(rows(first), rows(second)):
        assert (one["split"], one["step"]) == (other["split"], other["step"])
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4)
        images = 37 if one["split"] == "eval" else 64
        assert other["top1"] * images == pytest.approx(round(other["top1"] * images), abs=1e-9)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpu")
    assert run(folder, "--device", "cpu") == 0
    return folder


def test_two_stages_and_four_replicas_give_the_run_of_the_cpu(on_cpu: Path, tmp_path: Path) -> None:
    assert run(tmp_path / "ipu", *EMULATOR) == 0
    assert_same_run(on_cpu, tmp_path / "ipu")


def test_a_run_moves_from_cpu_to_the_emulator_and_back_through_its_checkpoints(on_cpu: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    for source, step in ((on_cpu, 1), (folder, 3)):
        keep = {path.name: path.read_bytes() for path in (source / "checkpoints").iterdir()}
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for path in (folder / "checkpoints").iterdir():
            path.unlink()
        for name, data in keep.items():
            if int(name.split("_")[1].split(".")[0]) <= step:
                (folder / "checkpoints" / name).write_bytes(data)
        (folder / "metrics.jsonl").write_text((source / "metrics.jsonl").read_text())
        assert run(folder, "--resume", *(EMULATOR if source == on_cpu else ["--device", "cpu"])) == 0
    assert_same_run(on_cpu, folder)


def test_two_instances_of_the_launcher_give_the_run_of_one(on_cpu: Path, tmp_path: Path) -> None:
    launcher = [
        sys.executable,
        "-m",
        "popdist.run",
        "--num-instances",
        "2",
        "--num-replicas",
        "4",
        "--ipus-per-replica",
        "2",
    ]
    done = started(launcher, tmp_path / "two", *EMULATOR, PYTHONPATH=str(ROOT / "emulator"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("2 processes") == 1  # one instance speaks
    assert_same_run(on_cpu, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("horovod") is None, reason="Horovod is not built here: make horovod")
def test_two_processes_of_horovodrun_give_the_run_of_one(on_cpu: Path, tmp_path: Path) -> None:
    launcher = [str(Path(sys.executable).parent / "horovodrun"), "--gloo", "-np", "2", sys.executable]
    done = started(launcher, tmp_path / "two", *EMULATOR)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_run(on_cpu, tmp_path / "two")


@pytest.mark.parametrize(
    ("device", "path", "part"),
    [
        ("ipu", "", "PopTorch is not installed; install the Poplar SDK 3.4"),
        ("ipu_model", "", "PopTorch is not installed; install the Poplar SDK 3.4"),
        ("ipu", str(ROOT / "emulator"), "needs Graphcore's PopTorch, but"),
    ],
)
def test_without_the_sdk_the_error_says_what_to_install(device: str, path: str, part: str, tmp_path: Path) -> None:
    done = started([sys.executable], tmp_path / "run", "--device", device, PYTHONPATH=path)
    assert done.returncode == 2
    assert part in done.stderr


@pytest.mark.parametrize("name", [name for name in config_names() if name.endswith("_ipu")])
def test_a_config_for_ipus_differs_from_its_experiment_only_in_how_it_is_executed(name: str) -> None:
    ipu, plain = load_config(name).model_dump(), load_config(name[: -len("_ipu")]).model_dump()
    assert ipu["device"].pop("name") == "ipu"
    assert plain["device"].pop("name") == "auto"
    assert ipu.pop("ipu") != plain.pop("ipu")
    assert ipu == plain
