"""Made images: their formula, and that a network can learn them."""

from typing import Any, List

import numpy as np
import torch
from torch import nn

from configs.schema import DataConfig
from datasets import build_datasets
from datasets.generated import EVALUATION, GeneratedImages


def generated_config(**options) -> DataConfig:
    defaults = {"image_size": 12, "num_classes": 4, "num_train_images": 40, "num_eval_images": 20}
    return DataConfig(name="generated", **{**defaults, **options})


def test_generated_images_are_a_function_of_half_and_index_and_not_of_the_seed():
    first, second = (build_datasets(generated_config(), seed) for seed in (1, 2))
    for index in (0, 1, 19):
        assert torch.equal(first.evaluation[index][0], second.evaluation[index][0])
        assert torch.equal(first.train[0, index][0], second.train[4, index][0])
        assert not torch.equal(first.train[0, index][0], first.evaluation[index][0])


def test_generated_images_follow_the_documented_formula_to_within_the_noise():
    source = GeneratedImages(EVALUATION, 40, 1, 16)
    frequencies, phases, colours = source.frequencies[0], source.phases[0], source.colours[0]
    residuals = []
    for index in range(40):
        image = source.load(index)[0].astype(np.float64)
        # the shift is the image's own secret: take the best of a fine grid of candidates
        shifts = np.stack(np.meshgrid(*[np.linspace(-1 / 8, 1 / 8, 21)] * 2), axis=-1).reshape(-1, 2)
        rows, columns = np.mgrid[0:16, 0:16] / 16
        angles = (
            2
            * np.pi
            * (
                frequencies[:, 0, None, None] * (rows + shifts[:, 0, None, None, None])
                + frequencies[:, 1, None, None] * (columns + shifts[:, 1, None, None, None])
            )
            + phases[:, None, None]
        )
        candidates = 127.5 + 24 * np.einsum("kr,srhw->skhw", colours, np.cos(angles))
        residuals.append(((candidates - image) ** 2).mean(axis=(1, 2, 3)).min())
    # bytes scaled to +-48 have variance 774, known here to 4 (standard error of 40 * 768 values); the best of many
    # shifts lies a little below, the grid's coarseness adds a little
    assert abs(np.mean(residuals) - 774) < 20


def test_generated_images_have_the_documented_mean_and_standard_deviation():
    data_sets = build_datasets(generated_config(num_classes=200, image_size=24, num_train_images=1000), 0)
    pixels = torch.stack([data_sets.train[0, index][0] for index in range(1000)]).double() / 255
    # colours and phases of 200 classes: the mean's standard error is about .1 %, the deviation's 1 %
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor(data_sets.mean).double(), atol=0.004)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.tensor(data_sets.std).double(), rtol=0.04)


def test_a_small_net_learns_generated_images_and_a_single_pixel_does_not_tell_the_class():
    torch.manual_seed(0)
    config = DataConfig(name="generated", image_size=16, num_train_images=1280, num_eval_images=400)
    data_sets = build_datasets(config, 0)

    def whole(items):
        images, labels = zip(*items)
        return (torch.stack(images).float() / 255 - 0.5) / data_sets.std[0], torch.tensor(labels)

    images, labels = whole(data_sets.train[0, index] for index in range(1280))
    eval_images, eval_labels = whole(data_sets.evaluation)
    net = nn.Sequential(
        nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(6):
        for rows in torch.randperm(1280).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    accuracy = (net(eval_images).argmax(1) == eval_labels).double().mean()
    assert accuracy > 0.95

    # the best single pixel: the class whose mean colour there is nearest
    means = torch.stack([images[labels == label].mean(0) for label in range(10)])
    distances = (eval_images[:, None] - means[None]).square().sum(2)
    single = (distances.argmin(1) == eval_labels[:, None, None]).double().mean(0).max()
    assert single < 0.35


def test_the_fingerprint_of_made_images_follows_what_determines_them():
    options = [{}, {"image_size": 13}, {"num_classes": 5}, {"num_train_images": 41}, {"num_eval_images": 21}]
    fingerprints = [build_datasets(generated_config(**changed), 0).fingerprint for changed in options]
    assert len(set(fingerprints)) == len(options)
    assert build_datasets(generated_config(crop_padding=2), 9).fingerprint == fingerprints[0]


def test_automatic_augmentation_seeds_the_generator_of_no_other_device(monkeypatch):
    seeded: List[Any] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    images = build_datasets(generated_config(auto_augment="cifar10"), 0).train
    assert images[0, 0][0].shape == (3, 12, 12) and seeded == []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
    assert len(seeded) == 1  # what is watched for is what torch's own function does
