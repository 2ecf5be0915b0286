"""Random operations: keyed on (seed, epoch, index), and without a trace in torch's global generator."""

from __future__ import annotations

from typing import List

import numpy as np
import pytest
import torch

from configs import ConfigError, load_config
from datasets import DataSets, build_datasets
from datasets.images.random_operations import RandomlyOperated, random_operations
from datasets.keyed_random import KeyedRandom


def data_sets(overrides: List[str], seed: int = 0) -> DataSets:
    settings = [f"data.{override}" for override in ["num_train_images=40", "image_size=24", *overrides]]
    return build_datasets(load_config("generated_smoke", settings).data, seed)


def images(data: DataSets, epoch: int) -> torch.Tensor:
    return torch.stack([data.train[epoch, index][0] for index in range(40)])


OPERATIONS = [
    ["auto_augment=imagenet"],
    ["auto_augment=cifar10"],
    ["auto_augment=svhn"],
    ["rand_augment_magnitude=9"],
    ["random_erasing=0.5"],
    ["rand_augment_magnitude=9", "random_erasing=0.5"],
]


@pytest.mark.parametrize("options", OPERATIONS, ids=" ".join)
def test_images_depend_on_seed_epoch_and_index_alone(options: List[str]) -> None:
    data = data_sets(options)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = images(data, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(torch.stack([data.train[3, index][0] for index in reversed(range(40))]).flip(0), first)
    assert (images(data, 4) != first).any() and (images(data_sets(options, 1), 3) != first).any()


def test_most_images_are_changed_and_their_labels_and_shape_are_not() -> None:
    plain, augmented = data_sets([]), data_sets(["auto_augment=imagenet"])
    before, after = images(plain, 0), images(augmented, 0)
    assert after.dtype == torch.uint8 and after.shape == before.shape
    changed = sum(bool((one != other).any()) for one, other in zip(before, after))
    assert 20 <= changed <= 40  # each of two operations is applied with a probability of .4 to 1
    assert [plain.train[0, index][1] for index in range(40)] == [augmented.train[0, index][1] for index in range(40)]


def test_evaluation_images_are_left_alone() -> None:
    options = ["auto_augment=imagenet", "random_erasing=1.0"]
    plain, augmented = data_sets([]), data_sets(options)
    assert all(torch.equal(plain.evaluation[index][0], augmented.evaluation[index][0]) for index in range(20))


def test_rand_augment_makes_as_many_operations_as_asked_for() -> None:
    """At strength 0 automatic contrast and equalization alone change an image; at 30 most operations do."""
    plain = data_sets([])
    changed = {}
    for magnitude, count in ((0, 1), (30, 1), (30, 4)):
        data = data_sets([f"rand_augment_magnitude={magnitude}", f"rand_augment_operations={count}"])
        changed[magnitude, count] = int((images(data, 0) != images(plain, 0)).flatten(1).any(1).sum())
    assert changed[0, 1] < changed[30, 1] < changed[30, 4] <= 40


def test_erasing_sets_one_rectangle_to_the_mean_colour_in_its_share_of_the_images() -> None:
    plain, erased = data_sets([]), data_sets(["random_erasing=0.5"])
    count = 0
    for index in range(40):
        before, after = plain.train[0, index][0], erased.train[0, index][0]
        different = (before != after).any(0)
        if not different.any():
            continue
        count += 1
        rows, columns = (torch.where(different.any(axis))[0] for axis in (1, 0))
        window = after[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (window == 128).all()  # the generated images' mean is .5
        # 2 to 33 % of 24 x 24 pixels, sides rounded; a side may look shorter where the image was 128 already
        assert 9 <= window[0].numel() <= 210
    assert 11 <= count <= 29  # 20 of 40 expected, standard deviation 3.2


def test_gray_images_are_taken_too() -> None:
    config = load_config("fashion_rn20_gn8", ["data.rand_augment_magnitude=30", "data.random_erasing=1.0"]).data
    operated = RandomlyOperated(lambda image, random: torch.from_numpy(image), random_operations(config, (0.25,)))
    image = np.full((1, 28, 28), 200, dtype=np.uint8)
    outputs = [operated(image, KeyedRandom(index)) for index in range(30)]
    assert all(output.shape == (1, 28, 28) and output.dtype == torch.uint8 for output in outputs)
    assert sum(bool((output == 64).any()) for output in outputs) > 25  # 255 / 4, erased; rounded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["auto_augment=svhn", "rand_augment_magnitude=3"], "both choose operations; give one"),
        (["rand_augment_operations=3"], "rand_augment_operations = 3 has no effect with no rand_augment_magnitude"),
    ],
)
def test_options_that_contradict_or_do_nothing_are_refused(options: List[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data_sets(options)
