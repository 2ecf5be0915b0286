"""train.py on emulated IPUs in real processes: instances, Horovod, moving a run between devices, missing PopTorch."""

import copy
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
from backends import choose_device
from configs import config_names, load_config
from experiment.checkpoint import load_checkpoint
from experiment.prepare import prepare
from normact import share_statistics

ROOT = Path(__file__).resolve().parents[2]
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
    return subprocess.run(command, cwd=ROOT, env=values, text=True, capture_output=True, timeout=600, check=False)


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


def test_running_statistics_are_the_mean_of_the_two_instances(tmp_path: Path) -> None:
    words = ["norm.name=batch", "norm.proxy=false", "norm.num_groups=null", "batch.norm_batch_size=8"]
    words += ["data.num_train_images=64", "data.num_eval_images=37", "batch.global_batch_size=32"]
    launcher = [sys.executable, "-m", "popdist.run", "--num-instances", "2", "--num-replicas", "2"]
    arguments = [part for word in [*words, "ipu.ipus=2", "ipu.splits=[]"] for part in ("--set", word)]
    done = started(
        launcher, tmp_path / "two", "--device", "ipu_emulator", *arguments, PYTHONPATH=str(ROOT / "emulator")
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = load_checkpoint(tmp_path / "two" / "checkpoints" / "step_00000001.pt")["model"]

    config = load_config("generated_smoke", words, [("--device", "device.name", "cpu")])
    cpu = prepare("test", config, choose_device(config.device, config.ipu)).start()
    session: Any = cpu.session
    images, labels = next(iter(cpu.session.training_batches(cpu.data.train, 0, 0, 0)))
    of_instance = []
    for instance in (0, 1):  # each runs two micro-batches of 8 with the first weights
        classifier = copy.deepcopy(session._classifier).train()
        share_statistics(classifier, None, forwards_per_update=2)
        for start in (16 * instance, 16 * instance + 8):
            classifier(images[start : start + 8], labels[start : start + 8])
        of_instance.append(dict(classifier.network.named_buffers()))
    for name, value in of_instance[0].items():
        mean = (value + of_instance[1][name]) / 2
        torch.testing.assert_close(found[name], mean, rtol=1e-4, atol=1e-6, check_dtype=False)


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


def test_an_installed_emulator_is_not_taken_for_the_sdk(tmp_path: Path) -> None:
    for package in ("poptorch", "poptorch_emulator"):  # as pip puts them into one folder
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    done = started([sys.executable], tmp_path / "run", "--device", "ipu", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "normact-poptorch-emulator is installed in its place" in done.stderr


@pytest.mark.parametrize("name", [name for name in config_names() if name.endswith("_ipu")])
def test_a_config_for_ipus_differs_from_its_experiment_only_in_how_it_is_executed(name: str) -> None:
    ipu, plain = load_config(name).model_dump(), load_config(name[: -len("_ipu")]).model_dump()
    assert ipu["device"].pop("name") == "ipu"
    assert plain["device"].pop("name") == "auto"
    assert ipu.pop("ipu") != plain.pop("ipu")
    assert ipu == plain
