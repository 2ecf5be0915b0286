"""Random experiments: whatever may be combined builds, trains, saves, and continues from its checkpoint to the bit."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
import yaml

import train
from configs import load_config
from experiment.checkpoint import load_checkpoint

QUICK, ALL = 4, 40
NORMALIZERS = ("batch", "layer", "group", "instance", "batch+ws", "layer+ws", "group+ws", "instance+ws")
Settings = Dict[str, Any]


def norm_and_batch(choose: random.Random) -> Settings:
    name = choose.choice((*NORMALIZERS, "group", "frn", "evonorm_s0", "dyt", "derf", "none"))
    global_batch_size = choose.choice((4, 6))
    chosen: Settings = {
        "norm.name": name,
        "norm.proxy": name in NORMALIZERS and choose.random() < 0.6,
        "norm.num_groups": choose.choice((1, 2, 4)) if name.startswith(("group", "evonorm")) else None,
        "norm.eps": choose.choice((None, 1e-3)) if name not in ("none", "dyt", "derf") else None,
        "batch.global_batch_size": global_batch_size,
        "batch.norm_batch_size": 1,
        "batch.micro_batch_size": choose.choice((None, 2, global_batch_size)),
    }
    if name.startswith("group"):
        chosen["norm.grouping"] = choose.choice((None, "contiguous", "strided"))
    if name.startswith("batch"):
        chosen["batch.norm_batch_size"] = chosen["batch.micro_batch_size"] or global_batch_size
        chosen["norm.momentum"] = choose.choice((None, 0.03))
    if chosen["norm.proxy"]:
        chosen["norm.learn_proxy"] = choose.choice((None, False))
        chosen["norm.proxy_eps"] = choose.choice((None, 0.1))
    return chosen


def model_and_data(choose: random.Random) -> Settings:
    name = choose.choice(("resnet8", "efficientnet_small", "efficientnet_small_g16"))
    crop = choose.choice(({"data.crop_padding": 2}, {"data.min_crop_area": 0.3}, {}))
    return {
        "model.name": name,
        "model.activation": choose.choice((None, None, "relu", "silu", "gelu", "leaky_relu(0.2)")),
        "model.width": choose.choice((4, 8)) if name == "resnet8" else None,
        "data.crop_padding": None,
        **crop,
        "data.horizontal_flip": choose.random() < 0.5,
        "data.auto_augment": choose.choice((None, None, "imagenet", "cifar10", "svhn")),
        "data.image_size": choose.choice((8, 12, 17)),
        "data.num_classes": choose.choice((2, 7)),
        "data.num_train_images": 13,
        "data.num_eval_images": choose.choice((5, 8)),
        "run.seed": choose.randrange(2**63),
        "device.channels_last": choose.random() < 0.4,
        "device.precision": choose.choice(("float32", "float32", "bfloat16")),
    }


def learning(choose: random.Random) -> Settings:
    optimizer = choose.choice(
        (
            {"optimizer.name": "sgd", "optimizer.momentum": 0.9, "optimizer.nesterov": choose.random() < 0.5},
            {"optimizer.name": "rmsprop", "optimizer.square_decay": 0.9, "optimizer.eps": 1e-3},
            {"optimizer.name": "adamw", "optimizer.momentum": None, "optimizer.betas": [0.9, 0.99]},
            {"optimizer.name": "lamb", "optimizer.momentum": None, "optimizer.betas": [0.9, 0.99]},
        )
    )
    if "optimizer.betas" in optimizer:
        optimizer["optimizer.eps"] = 1e-6  # type: ignore[assignment]
    schedule = choose.choice(
        (
            {"schedule.name": "constant"},
            {"schedule.name": "cosine"},
            {"schedule.name": "step", "schedule.milestones": [0.5, 1.5], "schedule.decay_factor": 0.1},
            {"schedule.name": "exponential", "schedule.decay_epochs": 0.3, "schedule.decay_factor": 0.9},
        )
    )
    cutmix = choose.choice(
        (
            {},
            {"regularization.cutmix_nominal": 0.8},
            {"regularization.cutmix_alpha": 1.0, "regularization.cutmix_probability": 0.5},
        )
    )
    every = choose.choice(("never", "epoch", "step"))
    return {
        **optimizer,
        "optimizer.learning_rate": 1e-3,
        "optimizer.weight_decay": choose.choice((0.0, 1e-2)),
        **schedule,
        "schedule.epochs": 2,
        "schedule.warmup_epochs": choose.choice((0, 0.5)),
        **cutmix,
        "regularization.mixup_alpha": choose.choice((None, 0.2)),
        "regularization.label_smoothing": choose.choice((0.0, 0.1)),
        "regularization.drop_rate": choose.choice((0.0, 0.3)),
        "regularization.drop_path_rate": choose.choice((0.0, 0.3)),
        "averaging.every": every,
        "averaging.decay": None if every == "never" else 0.6,
    }


def random_experiment(seed: int) -> List[str]:
    choose = random.Random(seed)
    chosen = {**norm_and_batch(choose), **model_and_data(choose), **learning(choose)}
    if chosen["model.name"] == "resnet8":  # has no layers that drop
        chosen.update({"regularization.drop_rate": 0.0, "regularization.drop_path_rate": 0.0})
    if chosen["norm.name"] in ("frn", "evonorm_s0"):  # bring their own
        chosen["model.activation"] = None
    chosen["run.checkpoint_every_steps"] = 1
    return [f"{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}" for key, value in chosen.items()]


def assert_equal(first: Any, second: Any, where: str) -> None:
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_equal(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second) and torch.isfinite(first).all(), where
    else:
        assert first == second, where


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] if seed >= QUICK else []) for seed in range(ALL)]
)
def test_a_random_experiment_trains_saves_and_continues_to_the_bit(tmp_path: Path, seed: int) -> None:
    overrides = random_experiment(seed)
    arguments = ["--config", "generated_smoke", "--device", "cpu"]
    arguments += [part for override in overrides for part in ("--set", override)]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert train.main([*arguments, "--output-dir", str(straight)]) == 0, overrides
    written = load_config(str(straight / "config.yaml"), ["run.output_dir=null"])
    assert written == load_config("generated_smoke", [*overrides, "device.name=cpu"])
    shutil.copytree(straight / "checkpoints", resumed / "checkpoints")
    *_, last = sorted((straight / "checkpoints").glob("step_*.pt"))
    for path in (resumed / "checkpoints").iterdir():
        if not path.name.startswith("step_00000001."):
            path.unlink()
    assert train.main([*arguments, "--output-dir", str(resumed), "--resume"]) == 0, overrides
    one, two = load_checkpoint(last), load_checkpoint(resumed / "checkpoints" / last.name)
    for part in ("model", "optimizer", "average", "step", "norm"):
        assert_equal(one[part], two[part], part)
    first = load_checkpoint(straight / "checkpoints" / "step_00000001.pt")["model"]
    assert any(not torch.equal(first[name], tensor) for name, tensor in one["model"].items())
