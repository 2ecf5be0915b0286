"""Weights as training scripts and frameworks of others save them: taken for what they are, and nothing else is made."""

from __future__ import annotations

import argparse
import datetime
import io
import json
import logging
import os
import random
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any, Callable, Dict, Tuple

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import evaluate
from configs import load_config
from datasets import build_datasets
from experiment.prepare import build_network
from experiment.weights_file import read_weights
from models import ImageClassifier
from models.pretrained import load_pretrained
from training.weights import CheckpointError

Weights = Dict[str, Tensor]
SETTINGS = ["data.num_train_images=64", "data.num_eval_images=30", "norm.name=batch", "norm.num_groups=null"]
SETTINGS += ["norm.proxy=false", "batch.norm_batch_size=64"]


def network(seed: int = 0) -> ImageClassifier:
    config = load_config("generated_smoke", [*SETTINGS, f"run.seed={seed}"])
    return build_network(config, build_datasets(config.data, 0))[1]


ARGS = argparse.Namespace(lr=0.1, device=torch.device("cpu"), out=Path("/x"), start=datetime.datetime(2021, 6, 7))
ARGS.more = argparse.Namespace(sizes={1, 2}, phase=1j, dtype=torch.float16)


class AttributeDict(dict):
    """Stands for the class of Lightning's that holds hyper-parameters."""

    __module__ = "lightning_fabric.utilities.data"


class Module(nn.Module):
    """A LightningModule, as far as names go."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(10))


def of_lightning(net: ImageClassifier) -> Any:
    return {
        "state_dict": Module(net).state_dict(),
        "hyper_parameters": AttributeDict(lr=0.1, betas=(0.9, 0.99), args=ARGS),
        "pytorch-lightning_version": "2.5.0",
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "dirpath": Path("/x")}},
        "optimizer_states": [torch.optim.SGD(net.parameters(), lr=0.1).state_dict()],
        "loops": defaultdict(dict, {"fit_loop": {}}),
    }


def of_composer(net: ImageClassifier) -> Any:
    model = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    rng = {"python": random.getstate(), "numpy": numpy.random.get_state(), "torch": torch.get_rng_state()}
    return {"state": {"model": model, "timestamp": {"epoch": 1}, "run_name": "a"}, "rng": [rng]}


def of_timm(net: ImageClassifier) -> Any:
    saved = {"state_dict": net.state_dict(), "args": ARGS, "epoch": 3, "arch": "resnet", "version": 2}
    return {**saved, "optimizer": {"state": {}}, "amp_scaler": {"scale": 1.0}, "metric": numpy.float64(0.5)}


def of_torchvision(net: ImageClassifier) -> Any:
    scheduler = {"base_lrs": [0.1], "last_epoch": 3}
    return {"model": net.state_dict(), "args": ARGS, "optimizer": {}, "lr_scheduler": scheduler, "epoch": 3}


def averaged(net: nn.Module) -> AveragedModel:
    average = AveragedModel(net)
    average.update_parameters(net)
    return average


# What is saved, which weights they are, and in which entry.
FILES: Dict[str, Tuple[Callable[[ImageClassifier], Any], str, Any]] = {
    "a state dict": (lambda net: net.state_dict(), "as saved", None),
    "DataParallel": (lambda net: nn.DataParallel(net).state_dict(), "as saved", None),
    "torch.compile": (lambda net: torch.compile(net).state_dict(), "as saved", None),  # type: ignore[attr-defined]
    "compiled, then parallel": (lambda net: nn.DataParallel(torch.compile(net)).state_dict(), "as saved", None),  # type: ignore[type-var]
    "AveragedModel": (lambda net: averaged(net).state_dict(), "average", None),
    "AveragedModel of DataParallel": (lambda net: averaged(nn.DataParallel(net)).state_dict(), "average", None),
    "timm": (of_timm, "as saved", "state_dict"),
    "torchvision": (of_torchvision, "as saved", "model"),
    "Lightning": (of_lightning, "as saved", "state_dict"),
    "Composer": (of_composer, "as saved", "state.model"),
    "timm, with an average": (
        lambda net: {**of_timm(network(1)), "state_dict_ema": net.state_dict()},
        "average",
        "state_dict_ema",
    ),
    "torchvision, with an average": (
        lambda net: {**of_torchvision(network(1)), "model_ema": averaged(net).state_dict()},
        "average",
        "model_ema",
    ),
}


def assert_equal(model: nn.Module, weights: Weights) -> None:
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


@pytest.fixture
def no_lightning(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lightning's module for writing; what it returns takes it away, so that reading cannot import it."""
    for name in ("lightning_fabric", "lightning_fabric.utilities", "lightning_fabric.utilities.data"):
        module = types.ModuleType(name)
        module.AttributeDict = AttributeDict  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    return monkeypatch.undo


@pytest.mark.parametrize("name", FILES)
def test_weights_of_others_come_in_to_the_bit(
    tmp_path: Path, name: str, no_lightning: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    make, which, entry = FILES[name]
    trained, path = network(), tmp_path / "weights.pth"
    torch.save(make(trained), path)
    no_lightning()
    saved = read_weights(path)
    assert (saved.which, saved.entry) == (which, entry)
    model = network(2)
    with caplog.at_level(logging.WARNING):
        load_pretrained(model, saved.tensors)
    assert_equal(model, trained.state_dict())
    assert ("1 tensor beside the network in 'net.' ignored: criterion.weight" in caplog.text) == (name == "Lightning")


def test_the_last_weights_can_be_asked_for_beside_an_average(tmp_path: Path) -> None:
    last, average = network(), network(1)
    torch.save({**of_timm(last), "state_dict_ema": average.state_dict()}, tmp_path / "weights.pth")
    assert_equal(last, read_weights(tmp_path / "weights.pth", weights="last").tensors)
    assert_equal(average, read_weights(tmp_path / "weights.pth", weights="average").tensors)
    torch.save(of_timm(last), tmp_path / "one.pth")
    with pytest.raises(CheckpointError, match="holds no average of its weights, only weights as saved"):
        read_weights(tmp_path / "one.pth", weights="average")


def test_two_networks_of_the_same_kind_are_not_chosen_between(tmp_path: Path) -> None:
    both = nn.ModuleDict({"student": network(), "teacher": network(1)})
    torch.save({"state_dict": both.state_dict()}, tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match=r"has several such networks, in student\., teacher\.; save the state dict of"):
        load_pretrained(network(), read_weights(tmp_path / "weights.ckpt").tensors)


def test_evaluate_names_the_weights_and_what_checked_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pth"
    torch.save({**of_timm(network()), "state_dict_ema": network(1).state_dict()}, path)
    (tmp_path / "weights.json").write_text('{"note": "of another program"}')  # no manifest
    arguments = ["--config", "generated_smoke", *(part for key in SETTINGS for part in ("--set", key))]
    found = {}
    for which in ("average", "last"):
        assert evaluate.main([str(path), *arguments, "--weights", which]) == 0
        found[which] = json.loads(capsys.readouterr().out)
    assert found["average"]["weights"] == "average" and found["average"]["entry"] == "state_dict_ema"
    assert found["last"]["weights"] == "last" and found["last"]["entry"] == "state_dict"
    assert found["last"]["checked_by"] == "CRC-32"
    assert found["last"]["loss"] != found["average"]["loss"]
    save_file(network().state_dict(), str(tmp_path / "weights.safetensors"))
    assert evaluate.main([str(tmp_path / "weights.safetensors"), *arguments]) == 0
    found["safe"] = json.loads(capsys.readouterr().out)
    assert found["safe"]["weights"] == "as saved" and "checked_by" not in found["safe"]


def test_the_names_of_torchvisions_resnet_are_told_for_what_they_are(tmp_path: Path) -> None:
    names = ["conv1.weight", "bn1.weight", "layer1.0.conv1.weight", "layer1.0.bn1.weight", "fc.weight"]
    torch.save({name: torch.ones(1) for name in names}, tmp_path / "resnet50.pth")
    with pytest.raises(ValueError, match=r"another network than this ResNet.* has the names conv1\.weight") as caught:
        load_pretrained(network(), read_weights(tmp_path / "resnet50.pth").tensors)
    assert "look like a ResNet of torchvision or timm in v1 order" in str(caught.value)


class Attack:
    """Runs a shell command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("hide", [lambda attack: argparse.Namespace(x=attack), lambda attack: {"a": [attack]}])
def test_code_among_settings_is_refused_and_not_run(tmp_path: Path, hide: Callable[[Any], Any]) -> None:
    torch.save({**of_timm(network()), "args": hide(Attack(tmp_path / "canary"))}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"asks for the global posix\.system: refused, nothing was run"):
        read_weights(tmp_path / "weights.pth")
    assert not (tmp_path / "canary").exists()


def test_harmless_classes_are_not_made_even_where_they_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    torch.save({"state_dict": {"w": torch.ones(1)}, "args": ARGS, "where": Path("/x")}, tmp_path / "weights.pth")
    monkeypatch.setattr(argparse.Namespace, "__setstate__", lambda self, state: made.append(state), raising=False)
    torch.load(tmp_path / "weights.pth", weights_only=False)  # they would be
    assert made
    made.clear()
    assert list(read_weights(tmp_path / "weights.pth").tensors) == ["w"]
    assert not made


@pytest.fixture(scope="module")
def intact() -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": torch.arange(4000.0), "b": torch.ones(7)}, "args": ARGS}, buffer)
    return buffer.getvalue()


@settings(derandomize=True, deadline=None, max_examples=200)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_an_error_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, intact: bytes, place: float, bit: int
) -> None:
    path = tmp_path_factory.mktemp("flip") / "weights.pth"
    data = bytearray(intact)
    data[int(place * len(data))] ^= 1 << bit
    path.write_bytes(data)
    try:
        tensors = read_weights(path).tensors
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert torch.equal(tensors["w"], torch.arange(4000.0)) and torch.equal(tensors["b"], torch.ones(7))
