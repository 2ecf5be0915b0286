"""Training a part of a network from weights that were trained before: what changes, and what must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch

import train
from configs import load_config
from experiment.checkpoint import load_checkpoint, newest_checkpoint
from experiment.weights_file import read_weights
from models import build_model
from normact import NormActFactory
from training.classifier import Classifier
from training.freezing import freeze_all_but
from training.weights import CheckpointError

SMALL = ["model.name=efficientnet_small_g16", "model.width=null", "regularization.drop_path_rate=0.5"]
SMALL += ["data.num_train_images=128", "data.num_eval_images=32", "schedule.epochs=2"]
AVERAGE = ["averaging.every=epoch", "averaging.decay=0.5"]
BATCH_NORM = ["norm.name=batch", "norm.proxy=false", "norm.num_groups=null", "batch.norm_batch_size=64"]


def run(folder: Path, overrides: List[str], code: int = 0) -> Dict[str, Any]:
    arguments = ["--config", "generated_smoke", "--device", "cpu", "--output-dir", str(folder)]
    assert train.main(arguments + [part for override in SMALL + overrides for part in ("--set", override)]) == code
    path = newest_checkpoint(folder / "checkpoints") if code == 0 else None
    return load_checkpoint(path) if path is not None else {}


def changed(before: Dict[str, torch.Tensor], after: Dict[str, torch.Tensor]) -> List[str]:
    return [name for name in before if not torch.equal(before[name], after[name])]


@pytest.mark.parametrize("norm", [[], BATCH_NORM], ids=["gnpn", "bn"])
def test_fine_tuning_the_top_starts_from_the_average_and_changes_the_top_alone(
    tmp_path: Path, norm: List[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    whole = run(tmp_path / "half", norm + AVERAGE)["average"]["weights"]
    settings = [f"model.pretrained={tmp_path / 'half'}", "model.train_only=[top, classifier]", "data.image_size=20"]
    tuned = run(tmp_path / "tuned", norm + settings)["model"]
    assert "dropout and drop-path layers are frozen, and drop nothing" in caplog.text
    different = changed(whole, tuned)
    assert {name.split(".")[0] for name in different} == {"top", "classifier"}
    assert {name for name in whole if name.startswith(("top.", "classifier."))} == set(different)


def test_a_run_stopped_before_its_first_average_gives_its_last_weights(tmp_path: Path) -> None:
    run(tmp_path, AVERAGE + ["run.checkpoint_every_steps=1"])
    path = tmp_path / "checkpoints" / "step_00000001.pt"  # of two in an epoch
    assert load_checkpoint(path)["average"]["updates"] == 0
    saved = read_weights(path)
    assert not saved.is_average
    assert not changed(load_checkpoint(path)["model"], saved.tensors)
    assert read_weights(tmp_path / "checkpoints" / "step_00000002.pt").is_average


def test_frozen_parts_stay_in_evaluation_mode_and_trained_ones_do_not() -> None:
    factory = NormActFactory(norm="batch", proxy=False)
    network = build_model("efficientnet_small", num_classes=3, norm_act=factory, drop_path_rate=0.5, drop_rate=0.5)
    frozen = freeze_all_but(network, ["stages.2.1", "classifier"])
    classifier = Classifier(network, (0.5,) * 3, (0.5,) * 3, frozen=frozen).train()
    training = {name for name, module in network.named_modules() if module.training}
    trained = {name for name, _ in network.named_modules() if name.startswith("stages.2.1")}
    assert training == {"", "stages", "stages.2", "dropout", "classifier"} | trained
    assert not any(module.training for module in classifier.eval().modules())


def test_dropout_in_front_of_a_trained_classifier_drops() -> None:
    network = build_model("efficientnet_small", num_classes=3, norm_act=NormActFactory(), drop_rate=0.5)
    classifier = Classifier(network, (0.5,) * 3, (0.5,) * 3, frozen=freeze_all_but(network, ["classifier"])).train()
    assert network.dropout.training and not network.stages.training
    assert not classifier.eval().network.dropout.training
    assert network.dropout in freeze_all_but(network, ["stages.2"])


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("topp", "not a module of the network; there are stem, stages, norm, classifier, and their parts"),
        ("stages.1.7", "not a module of the network; did you mean stages.1.0?"),
        ("dropout", "has no parameter"),
    ],
)
def test_a_name_without_parameters_is_refused(path: str, part: str) -> None:
    network = build_model("resnet8", num_classes=3, norm_act=NormActFactory(norm="layer"))
    with pytest.raises(ValueError, match=part):
        freeze_all_but(network, [path])


# ---- files of weights ----

TENSORS = {"weight": torch.arange(4.0), "bias": torch.ones(1)}


@pytest.mark.parametrize("wrapped", [lambda t: t, lambda t: {"state_dict": t}, lambda t: {"model": t, "epoch": 3}])
def test_state_dicts_are_read_alone_and_as_an_entry_and_lose_their_prefixes(tmp_path: Path, wrapped: Any) -> None:
    torch.save(wrapped({f"module.{name}": tensor for name, tensor in TENSORS.items()}), tmp_path / "weights.pth")
    saved = read_weights(tmp_path / "weights.pth")
    assert saved.norm is None and not saved.is_average
    assert list(saved.tensors) == list(TENSORS) and torch.equal(saved.tensors["weight"], TENSORS["weight"])


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(TENSORS, str(tmp_path / "weights.safetensors"))
    assert torch.equal(read_weights(tmp_path / "weights.safetensors").tensors["weight"], TENSORS["weight"])


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("empty.safetensors", b"", "cannot be read as safetensors"),
        ("text.pth", b"hello", "truncated or not a checkpoint"),
        ("numbers.pth", {"epoch": 3}, "holds no weights"),
        ("nothing.pth", None, "cannot be read"),
    ],
)
def test_files_without_weights_are_refused(tmp_path: Path, name: str, content: Any, part: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=part):
        read_weights(path)
    with pytest.raises(CheckpointError, match="not a run folder with a checkpoint"):
        read_weights(tmp_path)


def test_weights_of_another_norm_or_number_of_classes_stop_the_run_with_code_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "first", ["schedule.epochs=1"])
    pretrained = f"model.pretrained={tmp_path / 'first'}"
    run(tmp_path / "a", [pretrained, "norm.num_groups=2"], code=4)
    assert "num_groups 4 in the checkpoint, 2 here" in capsys.readouterr().err
    run(tmp_path / "eps", [pretrained, "norm.proxy_eps=0.5"], code=4)
    assert "proxy_eps 0.03 in the checkpoint, 0.5 here" in capsys.readouterr().err
    run(tmp_path / "b", [pretrained, "data.num_classes=7"], code=4)
    assert "set reset_classifier, which initializes it at random. Use the network" in capsys.readouterr().err
    run(tmp_path / "c", [pretrained, "data.num_classes=7", "model.reset_classifier=true"])


def test_resetting_a_classifier_without_weights_to_start_from_is_refused() -> None:
    with pytest.raises(Exception, match="reset_classifier true has no effect without pretrained"):
        load_config("generated_smoke", ["model.reset_classifier=true"])
