"""Images held out of training: the same share of each class, the same images always, none of them trained on."""

from __future__ import annotations

from pathlib import Path
from typing import List

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_images import write_image_folder

from configs import ConfigError, load_config
from configs.schema import DataConfig
from datasets import DataSets, build_datasets
from datasets.held_out import choose_held_out
from datasets.pack import pack
from training.order import image_order


def data_sets(*overrides: str, seed: int = 0) -> DataSets:
    settings = [f"data.{override}" for override in ["num_train_images=200", "image_size=8", *overrides]]
    return build_datasets(load_config("generated_smoke", settings).data, seed)


def test_shares_of_classes_are_rounded_by_largest_remainder() -> None:
    labels = np.array([0] * 5 + [1] * 3 + [2] * 2)
    # 4 of 10: 2.0, 1.2 and 0.8 images; 3 of 10: 1.5, 0.9 and 0.6, of which the last two remainders are the largest.
    assert np.bincount(labels[choose_held_out(labels, 4)]).tolist() == [2, 1, 1]
    assert np.bincount(labels[choose_held_out(labels, 3)]).tolist() == [1, 1, 1]


@given(st.lists(st.integers(0, 6), min_size=2, max_size=60), st.data())
def test_any_labels_give_the_asked_number_and_each_class_within_one_of_its_share(
    labels: List[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(labels)))
    sizes = np.bincount(labels)
    try:
        chosen = choose_held_out(np.array(labels), count)
    except ConfigError:
        assert any(size and size * (count / len(labels)) > size - 1 for size in sizes)
        return
    held_out = np.bincount(np.array(labels)[chosen], minlength=len(sizes))
    assert held_out.sum() == count
    assert all(abs(part - size * count / len(labels)) < 1 for part, size in zip(held_out, sizes))
    assert all(part < size for part, size in zip(held_out, sizes) if size)


def test_which_images_of_a_class_is_random_and_not_the_first_ones() -> None:
    chosen = np.flatnonzero(choose_held_out(np.zeros(1000, dtype=np.int64), 500))
    # 500 of 1000 at random: 250 below 500, standard deviation 11.2; five of them.
    assert abs(int((chosen < 500).sum()) - 250) < 56


def test_every_image_is_trained_on_or_held_out_whatever_the_seed() -> None:
    whole, parts, other_seed = data_sets(), data_sets("validation_images=37"), data_sets("validation_images=37", seed=5)
    assert (len(parts.train), len(parts.validation or ())) == (163, 37)
    stored = [whole.train.source.load(index)[0].tobytes() for index in range(200)]
    trained = [parts.train.source.load(index)[0].tobytes() for index in range(163)]
    assert parts.validation is not None and other_seed.validation is not None
    held_out = [parts.validation.source.load(index)[0].tobytes() for index in range(37)]
    assert sorted(trained + held_out) == sorted(stored)
    assert held_out == [other_seed.validation.source.load(index)[0].tobytes() for index in range(37)]
    assert whole.validation is None and whole.fingerprint == parts.fingerprint


def test_held_out_images_are_shown_as_evaluation_shows_them() -> None:
    data = data_sets("validation_images=20", "crop_padding=2", "horizontal_flip=true", "auto_augment=cifar10")
    assert data.validation is not None
    for index in range(20):
        image, label = data.validation[index]
        stored, stored_label = data.validation.source.load(index)
        assert torch.equal(image, torch.from_numpy(stored)) and label == stored_label


@pytest.mark.parametrize("is_packed", [False, True])
def test_folders_and_shards_hold_out_by_class_and_shards_keep_their_order_by_files(
    tmp_path: Path, is_packed: bool
) -> None:
    folder = write_image_folder(tmp_path / "folder")  # three training images in each of two classes
    common = {"image_size": 8, "validation_images": 2}
    if is_packed:
        pack(folder, tmp_path / "shards", shard_bytes=8_000, seed=0)
        config = DataConfig(name="image_shards", dir=str(tmp_path / "shards"), shuffle_shards=1, **common)
    else:
        config = DataConfig(name="image_folder", dir=str(folder), **common)
    data = build_datasets(config, 0)
    assert data.validation is not None and (len(data.train), len(data.validation)) == (4, 2)
    assert sorted(data.validation[index][1] for index in range(2)) == [0, 1]
    if is_packed:
        assert data.train.parts is not None and len(data.train.parts.sizes) > 1 and sum(data.train.parts.sizes) == 4
        assert sorted(image_order(0, 0, 4, data.train.parts)) == [0, 1, 2, 3]


def test_a_split_that_leaves_a_class_without_an_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"validation_images 196 of 200 training images would hold out all 20 of cl"):
        data_sets("validation_images=196")
    with pytest.raises(ConfigError, match="would hold out all"):
        data_sets("validation_images=200")
