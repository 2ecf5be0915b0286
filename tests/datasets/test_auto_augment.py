"""AutoAugment: keyed on (seed, epoch, index), and without a trace in torch's global generator."""

from __future__ import annotations

from typing import List

import pytest
import torch

from configs import load_config
from datasets import DataSets, build_datasets


def data_sets(overrides: List[str], seed: int = 0) -> DataSets:
    settings = [f"data.{override}" for override in ["num_train_images=40", "image_size=24", *overrides]]
    return build_datasets(load_config("generated_smoke", settings).data, seed)


def images(data: DataSets, epoch: int) -> torch.Tensor:
    return torch.stack([data.train[epoch, index][0] for index in range(40)])


@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
def test_images_depend_on_seed_epoch_and_index_alone(policy: str) -> None:
    data = data_sets([f"auto_augment={policy}"])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = images(data, 3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(torch.stack([data.train[3, index][0] for index in reversed(range(40))]).flip(0), first)
    assert (images(data, 4) != first).any() and (images(data_sets([f"auto_augment={policy}"], 1), 3) != first).any()


def test_most_images_are_changed_and_their_labels_and_shape_are_not() -> None:
    plain, augmented = data_sets([]), data_sets(["auto_augment=imagenet"])
    before, after = images(plain, 0), images(augmented, 0)
    assert after.dtype == torch.uint8 and after.shape == before.shape
    changed = sum(bool((one != other).any()) for one, other in zip(before, after))
    assert 20 <= changed <= 40  # each of two operations is applied with a probability of .4 to 1
    assert [plain.train[0, index][1] for index in range(40)] == [augmented.train[0, index][1] for index in range(40)]


def test_evaluation_images_are_left_alone() -> None:
    plain, augmented = data_sets([]), data_sets(["auto_augment=imagenet"])
    assert all(torch.equal(plain.evaluation[index][0], augmented.evaluation[index][0]) for index in range(20))
