"""What a file's configuration decides: the network, and never where the program reads, writes or connects."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
import torch

import analyze
import evaluate
import train
from configs import ConfigError, load_config
from datasets.shards import remote_store
from experiment.checkpoint import newest_checkpoint
from experiment.foreign_config import config_of_file
from experiment.run_folder import RunFolder
from experiment.tracker import build_trackers
from training.weights import CheckpointError

SMALL = ["data.num_train_images=64", "data.num_eval_images=10", "schedule.epochs=1"]
SHARDS = ["data.name=image_shards", "data.num_classes=null", "data.num_train_images=null", "data.num_eval_images=null"]
SHARDS += ["data.crop_padding=null"]


def settings(*values: str) -> List[str]:
    return [part for value in values for part in ("--set", value)]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    arguments = ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(folder), *settings(*SMALL)]
    assert train.main(arguments) == 0
    return folder


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Give a place that notes who connects: the canary of a URL."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.2)
        yield server


def was_connected_to(server: socket.socket) -> bool:
    try:
        server.accept()
    except OSError:
        return False
    return True


def with_data(run_folder: Path, path: Path, **data: Any) -> Path:
    """Return a copy of the run's checkpoint whose configuration names other data."""
    newest = newest_checkpoint(run_folder / "checkpoints")
    assert newest is not None
    state = torch.load(newest, weights_only=True)
    state["config"]["data"].update(data)
    torch.save(state, path)
    return path


OF_SHARDS = {"name": "image_shards", "num_classes": None, "num_train_images": None, "num_eval_images": None}
OF_SHARDS.update({"crop_padding": None})


def test_a_checkpoint_does_not_decide_where_evaluate_connects(
    run_folder: Path,
    tmp_path: Path,
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("DATA_DIR", raising=False)
    monkeypatch.setattr(remote_store, "PAUSES_SECONDS", ())
    url = f"ftp://ann:s3cret@127.0.0.1:{listener.getsockname()[1]}/data"
    path = with_data(run_folder, tmp_path / "foreign.pt", dir=url, **OF_SHARDS)
    assert evaluate.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert "A file does not decide what is read or connected to" in error and "--set data.dir=ftp://ann:***@" in error
    assert "s3cret" not in error and not was_connected_to(listener)
    # The same place, named by the command, is connected to.
    listener.close()
    assert evaluate.main([str(path), *settings(f"data.dir={url}")]) == 3
    error = capsys.readouterr().err
    assert "cannot be read: failed 1 times, at last with ConnectionRefusedError" in error
    assert "s3cret" not in error and "Traceback" not in error


def test_a_checkpoint_does_not_decide_which_folder_is_read(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DATA_DIR", raising=False)
    path = with_data(run_folder, tmp_path / "foreign.pt", dir="/etc", **OF_SHARDS)
    assert evaluate.main([str(path)]) == 2
    assert "was trained on data in '/etc'" in capsys.readouterr().err
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert evaluate.main([str(path)]) == 3  # and no image in the user's own place
    assert f"no images in {tmp_path}" in capsys.readouterr().err


def test_a_run_folder_does_not_decide_where_analyze_reads(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DATA_DIR", raising=False)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    text = (run_folder / "config.yaml").read_text().replace("  dir: null\n", "  dir: /etc\n")
    assert "dir: /etc" in text
    (foreign / "config.yaml").write_text(text)
    (foreign / "checkpoints").symlink_to(run_folder / "checkpoints")
    assert analyze.main(["power", "--run", str(foreign), "--out", str(tmp_path / "out")]) == 2
    assert "was trained on data in '/etc'" in capsys.readouterr().err


def values_of(*overrides: str) -> Dict[str, Any]:
    values: Dict[str, Any] = json.loads(load_config("generated_smoke", overrides).model_dump_json())
    return values


def test_what_takes_the_machine_or_writes_is_not_taken_from_a_file(tmp_path: Path) -> None:
    values = values_of("data.workers=500", "run.output_dir=/etc", "run.wandb=online", "model.width=4")
    config = config_of_file(values, tmp_path / "x.pt")
    assert (config.data.workers, config.run.output_dir, config.run.wandb) == (0, None, "off")
    assert config.model.width == 4
    assert config_of_file(values, tmp_path / "x.pt", ["data.workers=2"]).data.workers == 2


def test_a_base_is_no_part_of_a_written_configuration(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not consist of sections"):
        config_of_file({**values_of(), "base": "/etc/passwd"}, tmp_path / "x.pt")


@pytest.mark.parametrize("values", [3, [1], {"model": 1}, {"model": {"name": torch.ones(1)}}])
def test_what_is_no_configuration_is_an_error_of_the_file(tmp_path: Path, values: Any) -> None:
    with pytest.raises((CheckpointError, ConfigError)):
        config_of_file(values, tmp_path / "x.pt")
    with pytest.raises(CheckpointError):
        config_of_file({**values_of(), "run": {"seed": torch.ones(1)}}, tmp_path / "x.pt")


def test_a_refused_connection_is_an_error_of_the_data_and_tells_no_password(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(remote_store, "PAUSES_SECONDS", (0.0, 0.0))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    url = f"ftp://ann:s3cret@127.0.0.1:{port}/data"
    arguments = ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(tmp_path / "run")]
    assert train.main([*arguments, *settings(*SHARDS, f"data.dir={url}", "run.wandb=offline")]) == 3
    error = capsys.readouterr().err
    assert "failed 3 times, at last with ConnectionRefusedError" in error and "Traceback" not in error
    assert "trying again" in caplog.text
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not any(b"s3cret" in content for content in written)
    assert "s3cret" not in error + caplog.text


def test_an_offline_wandb_run_holds_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "ftp://ann:s3cret@host/data"
    monkeypatch.setattr("sys.argv", ["train.py", *settings(f"data.dir={url}")])
    config = load_config("generated_smoke", [*SHARDS, f"data.dir={url}", "run.wandb=offline"])
    tracker = build_trackers(config, RunFolder(tmp_path), "run", past=[])
    tracker.log({"split": "train", "step": 1, "loss": 1.0})
    tracker.close()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"ftp://ann:***@host" in content for content in written)
    assert not any(b"s3cret" in content for content in written)
