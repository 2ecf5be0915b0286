"""Mixup, CutMix, dropout and stochastic depth: their distributions, and the same result for every way of executing."""

from __future__ import annotations

import functools
from typing import Any, Dict, List

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc
from torch import Tensor

from backends import Workload
from backends.torch_native.device import TorchDevice
from configs import ConfigError, load_config, plan_batch
from configs.schema import BatchConfig
from configs.schema.device import DeviceConfig
from configs.schema.learning import OptimizerConfig, RegularizationConfig
from experiment.prepare import check_learning
from models import build_model
from models.drop import Drop
from normact import NormActFactory, affine_parameter_names
from training.classifier import Classifier
from training.draws import StepDraws
from training.loss import cross_entropy_sum
from training.mixing import PARTNERS, Mixing, mix_images, mix_labels

MANY = 200_000


def mixing(size: int = 224, **fields: float) -> Mixing:
    made = Mixing.of(RegularizationConfig(**fields), size)
    assert made is not None
    return made


def drawn(images: int = MANY, size: int = 224, **fields: float) -> np.ndarray:
    return mixing(size, **fields).draw(np.random.default_rng(5), images)


def kept_share(rows: np.ndarray, size: int) -> np.ndarray:
    return 1 - (rows[:, 2] - rows[:, 1]) * (rows[:, 4] - rows[:, 3]) / size**2


# ---- distributions ----


def test_mixup_coefficients_have_the_folded_beta_distribution() -> None:
    c = drawn(mixup_alpha=0.1)[:, 0]
    assert c.min() >= 0.5 and c.max() <= 1
    # E max(m, 1 - m) = 1 - I_(1/2)(1.1, .1) = .9417, with I the regularized incomplete beta function; the mean of
    # 200,000 is within .001 of it.
    assert c.mean() == pytest.approx(1 - betainc(1.1, 0.1, 0.5), abs=0.001)
    assert c.mean() == pytest.approx(0.94, abs=0.005)
    assert (c > 0.99).mean() == pytest.approx(2 * (1 - betainc(0.1, 0.1, 0.99)), abs=0.004)
    # In float16 the two gammas of a Beta often both underflow, and a quarter of the images would get exactly .5.
    assert (c == 0.5).mean() <= 0.0003


def test_the_authors_cutmix_leaves_the_stated_share_of_images_whole() -> None:
    for nominal, whole in ((0.95, 0.5125), (0.9, 0.435), (0.85, 0.3575), (0.8, 0.28)):
        rows = drawn(cutmix_nominal=nominal)
        # 1.55 nominal - .96; besides, 1 + ln(u)/4 > 1 - 1/(2*224)^2 rounds to no box, which is about 2e-5 of draws.
        assert (kept_share(rows, 224) == 1).mean() == pytest.approx(whole, abs=0.004)


def test_the_authors_cutmix_boxes_have_the_stated_mean_and_lie_wholly_inside() -> None:
    rows = drawn(cutmix_nominal=0.62, size=4096)  # 1.55 * .62 - .96 = .001: nearly every image has a box
    share = kept_share(rows, 4096)
    assert share[share < 1].mean() == pytest.approx(0.769, abs=0.002)  # the mean of 1 + ln(u)/4, u ~ U(e^-4, 1)
    assert rows[:, 1:].min() >= 0 and rows[:, 1:].max() <= 4096
    heights, widths = rows[:, 2] - rows[:, 1], rows[:, 4] - rows[:, 3]
    assert np.array_equal(heights, widths)  # the image's aspect ratio
    half = (heights > 2000) & (heights < 2100)
    places = rows[half, 1] / (4096 - heights[half])
    assert places.mean() == pytest.approx(0.5, abs=0.02) and places.std() == pytest.approx(12**-0.5, abs=0.02)


def test_the_plain_cutmix_cuts_boxes_off_at_the_border_and_reports_what_is_left() -> None:
    rows = drawn(cutmix_alpha=1.0, size=1000)
    assert rows[:, 1:].min() >= 0 and rows[:, 1:].max() <= 1000
    # Side s = sqrt(1 - share), centre uniform: the part of a side inside is s - s^2/4, so of the area s^2 (1 - s/4)^2.
    # With share uniform, s^2 is, and the mean is the integral of v (1 - sqrt(v)/4)^2 = 1/2 - 1/5 + 1/48 over [0, 1].
    assert 1 - kept_share(rows, 1000).mean() == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.003)


def test_the_plain_cutmix_gives_only_the_stated_share_of_images_a_box() -> None:
    rows = drawn(cutmix_alpha=1.0, cutmix_probability=0.25, size=1000)
    assert (kept_share(rows, 1000) < 1).mean() == pytest.approx(0.25, abs=0.004)


def test_drop_factors_are_zero_at_the_stated_rate_and_keep_the_mean() -> None:
    draws = StepDraws(None, (Drop(0.25), Drop(0.5, columns=3)))
    table = draws.rows(seed=1, step=2, global_batch_size=40_000, start=0, stop=40_000)
    assert table.shape == (40_000, 4)
    assert set(table[:, 0].tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert (table[:, 0] == 0).float().mean() == pytest.approx(0.25, abs=0.011)  # 5 sqrt(.25 * .75 / 40000)
    assert (table[:, 1:] == 0).float().mean() == pytest.approx(0.5, abs=0.008)
    assert not torch.equal(table[:, 1], table[:, 2])


# ---- mixing by hand ----


def test_mixed_pixels_and_label_weights_equal_hand_computed_numbers() -> None:
    # Three images of 2x2 pixels, constant 100, 10 and 1: two partners and the image itself.
    x = torch.tensor([100.0, 10.0, 1.0]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    rows = torch.tensor([[0.75, 0, 1, 1, 2]])  # c = .75; the box is the upper right pixel
    own = 0.75 * 1 + 0.25 * 10
    assert mix_images(x, rows).flatten().tolist() == [own, 100.0, own, own]
    labels, weights = mix_labels(torch.tensor([7, 8, 9]), rows, 2, 2)
    assert labels.tolist() == [[9, 8, 7]]
    assert weights.tolist() == [[0.75 * 0.75, 0.75 * 0.25, 0.25]]


def test_the_loss_of_a_mixed_image_is_that_of_its_soft_label() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (5, 3), generator=generator)
    weights = torch.rand(5, 3, dtype=torch.float64, generator=generator)
    weights /= weights.sum(dim=1, keepdim=True)
    soft = (F.one_hot(labels, 4) * weights.unsqueeze(2)).sum(dim=1)
    expected = F.cross_entropy(logits, 0.9 * soft + 0.1 / 4, reduction="sum")
    torch.testing.assert_close(cross_entropy_sum(logits, labels, 0.1, weights), expected, rtol=1e-12, atol=0)


# ---- any execution gives the same ----

EVERYTHING: Dict[str, float] = {"mixup_alpha": 0.4, "cutmix_nominal": 0.7, "drop_rate": 0.3, "drop_path_rate": 0.5}


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_parts_of_a_table_are_the_table(seed: int, step: int, parts: int) -> None:
    draws = StepDraws(mixing(16, mixup_alpha=0.2, cutmix_nominal=0.9), (Drop(0.5), Drop(0.1, columns=7)))
    size = 4 * parts
    whole = draws.rows(seed, step, size, 0, size)
    pieces = [draws.rows(seed, step, size, start, start + 4) for start in range(0, size, 4)]
    assert torch.equal(torch.cat(pieces), whole)
    assert not torch.equal(draws.rows(seed, step + 1, size, 0, size), whole)


def weights_after_updates(
    fields: Dict[str, float], micro: int, global_batch: int = 8, **device: Any
) -> Dict[str, Tensor]:
    torch.manual_seed(3)
    factory = NormActFactory(norm="group", num_groups=4)
    rates = {name: fields.get(name, 0.0) for name in ("drop_rate", "drop_path_rate")}
    network = build_model("efficientnet_small_g16", num_classes=10, norm_act=factory, **rates)
    config = RegularizationConfig(**fields)
    draws = StepDraws(Mixing.of(config, 12), network.drops())
    classifier = Classifier(network, (0.5,) * 3, (0.25,) * 3, 0.1, draws).double()
    batch = BatchConfig(global_batch_size=global_batch, norm_batch_size=1, micro_batch_size=micro)
    optimizer = OptimizerConfig(name="sgd", learning_rate=0.1, momentum=0.9)
    workload = Workload(network, False, 12, 3, global_batch, 1, batch, optimizer)
    placement = TorchDevice(DeviceConfig(name="cpu", **device)).settle(workload)
    session = placement.start(classifier, affine_parameter_names(network), seed=11)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (2, global_batch, 3, 12, 12), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (2, global_batch), generator=generator)
    for step in range(2):
        order = [place % global_batch for place in range(-draws.partners, global_batch)]
        session.train_step((images[step][order], labels[step][order]), step, 0.1)
    return session.state()["model"]


def largest_difference(first: Dict[str, Tensor], second: Dict[str, Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_mixing_and_dropping_do_not_depend_on_the_micro_batch(micro: int) -> None:
    # float64: the order of sums costs about 1e-15 of weights below 1, grown by two updates.
    assert largest_difference(weights_after_updates(EVERYTHING, micro), weights_after_updates(EVERYTHING, 8)) < 1e-11


@pytest.mark.parametrize("name", sorted(EVERYTHING))
def test_each_kind_of_regularization_changes_the_training(name: str) -> None:
    assert largest_difference(weights_after_updates({name: EVERYTHING[name]}, 8), weights_after_updates({}, 8)) > 1e-4


@pytest.mark.slow
def test_handed_over_factors_do_not_compile_the_network_again_at_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether to compile again is decided before code is generated, which takes minutes and is left out here.
    traced = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    torch._dynamo.reset()
    plain = weights_after_updates(EVERYTHING, 4)
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled = weights_after_updates(EVERYTHING, 4, compile=True)
    assert largest_difference(plain, compiled) < 1e-9


# ---- what is refused ----


def make_classifier(**fields: float) -> Classifier:
    network = build_model("resnet8", num_classes=4, norm_act=NormActFactory(norm="layer"), width=4)
    return Classifier(network, (0.5,) * 3, (0.5,) * 3, 0.0, StepDraws(Mixing.of(RegularizationConfig(**fields), 8)))


def test_a_training_step_without_what_must_be_drawn_is_refused_and_evaluation_needs_nothing() -> None:
    images, labels = torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    classifier = make_classifier(mixup_alpha=0.2)
    with pytest.raises(ValueError, match="takes 5 drawn numbers for each image, got none"):
        classifier.train()(images, labels)
    assert int(classifier.eval()(images, labels)[3]) == 4
    with pytest.raises(ValueError, match=r"takes 0 drawn numbers for each image, got \(4, 5\)"):
        make_classifier().train()(images, labels, torch.zeros(4, 5))


def test_factors_are_taken_back_after_each_step() -> None:
    layer = Drop(0.5)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4), layer)
    classifier = Classifier(network, (0.5,) * 3, (0.5,) * 3, 0.0, StepDraws(None, (layer,))).train()
    images, labels = torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.zeros(2, dtype=torch.long)
    classifier(images, labels, torch.zeros(2, 1))
    assert layer.factors is None


@pytest.mark.parametrize("global_batch_size", [1, 2])
def test_mixing_needs_a_global_batch_with_partners(global_batch_size: int) -> None:
    overrides = [f"batch.global_batch_size={global_batch_size}", "regularization.mixup_alpha=0.2"]
    config = load_config("generated_smoke", overrides)
    plan = plan_batch(
        config.batch,
        uses_batch_norm=False,
        replicas=1,
        local_replicas=1,
        max_micro_batch_size=8,
        can_share_statistics=True,
    )
    with pytest.raises(ConfigError, match=rf"batch.global_batch_size {global_batch_size} is less than 1 \+ {PARTNERS}"):
        check_learning(config, plan)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["cutmix_nominal=0.9", "cutmix_alpha=1.0"], "two rules of CutMix; give one"),
        (["cutmix_probability=0.5"], "cutmix_probability = 0.5 has no effect with no cutmix_alpha"),
        (["cutmix_nominal=0.5"], "greater than or equal to 0.62"),
        (["drop_rate=1.0"], "less than 1"),
    ],
)
def test_regularization_that_contradicts_itself_is_refused(overrides: List[str], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        load_config("generated_smoke", [f"regularization.{override}" for override in overrides])
