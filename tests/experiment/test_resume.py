"""What may differ between a run and its continuation, and what may not."""

from __future__ import annotations

from typing import Any, Dict

import pytest

from configs import load_config
from experiment.resume import check_same_run, why_inexact
from training.weights import CheckpointError

SHARDS = ["data.name=image_shards", "data.crop_padding=null", "data.num_classes=null"]
SHARDS += ["data.num_train_images=null", "data.num_eval_images=null"]


def config(*overrides: str) -> Dict[str, Any]:
    return load_config("generated_smoke", [*SHARDS, *overrides]).model_dump(mode="json")


@pytest.mark.parametrize(
    "override",
    [
        "data.dir=/elsewhere",
        "data.cache_dir=/copies",
        "data.workers=3",
        "data.max_corrupt=5",  # so that a run that ended over a damaged image can go on
        "batch.micro_batch_size=8",
        "norm.kernel=reference",
        "norm.recompute=true",
        "device.threads=2",
        "device.precision=bfloat16",
        "ipu.ipus=8",
        "run.output_dir=/runs/here",
        "run.log_every_steps=3",
        "run.power_every_epochs=2",
        "run.keep_checkpoints=3",
    ],
)
def test_what_says_only_how_a_run_is_executed_may_change(override: str) -> None:
    check_same_run(config(), config(override), "step_00000001.pt")


@pytest.mark.parametrize(
    "override",
    [
        "run.seed=3",
        "model.width=16",
        "norm.num_groups=2",
        "data.image_size=24",
        "data.horizontal_flip=true",
        "data.auto_augment=svhn",
        "data.rand_augment_magnitude=8",
        "data.random_erasing=0.4",
        "data.validation_images=10",
        "batch.global_batch_size=32",
        "regularization.mixup_alpha=0.2",
        "regularization.drop_rate=0.2",
        "optimizer.weight_decay=0.0",
        "schedule.epochs=5",
    ],
)
def test_what_a_run_means_may_not_change(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(CheckpointError, match=f"written by another experiment: {key} was "):
        check_same_run(config(), config(override), "step_00000001.pt")


def test_other_decoders_and_those_that_were_not_recorded_make_continuing_inexact() -> None:
    facts = {"torch": "2", "python": "3.11", "decoder": "simplejpeg 1.9, Pillow 13"}
    assert why_inexact(facts, {**facts, "python": "3.12"}) == []
    assert why_inexact(facts, {**facts, "decoder": "Pillow 13"}) == [
        "decoder was simplejpeg 1.9, Pillow 13, is now Pillow 13"
    ]
    earlier = {"torch": "2", "python": "3.11"}
    assert why_inexact(earlier, facts) == ["decoder was not recorded, is now simplejpeg 1.9, Pillow 13"]
    assert why_inexact(earlier, {**facts, "decoder": ""}) == []  # images in memory need none


def test_a_run_with_a_fingerprint_over_contents_is_another_than_one_without() -> None:
    check_same_run(config("data.fingerprint=contents"), config("data.fingerprint=contents"), "step_00000001.pt")
    before = config()
    del before["data"]["fingerprint"]  # as checkpoints before this setting
    check_same_run(before, config(), "step_00000001.pt")
    with pytest.raises(CheckpointError, match=r"data\.fingerprint was None, is now 'contents'"):
        check_same_run(config(), config("data.fingerprint=contents"), "step_00000001.pt")
