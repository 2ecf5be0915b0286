"""What all data sets promise: made files, no network."""

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_images import write_image_folder
from torch.utils.data import DataLoader

from configs.errors import ConfigError
from configs.schema import DataConfig
from datasets import build_datasets


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_image_folder(tmp_path)


def folder_config(folder: Path, **options) -> DataConfig:
    return DataConfig(name="image_folder", dir=str(folder), **{"image_size": 16, **options})


def generated_config(**options) -> DataConfig:
    defaults = {"image_size": 12, "num_classes": 4, "num_train_images": 40, "num_eval_images": 20}
    return DataConfig(name="generated", **{**defaults, **options})


@pytest.fixture(params=["generated", "generated with padded crops", "image_folder"])
def data_sets(request, folder):
    return build_datasets(
        {
            "generated": generated_config(min_crop_area=0.3, horizontal_flip=True),
            "generated with padded crops": generated_config(crop_padding=2, horizontal_flip=True),
            "image_folder": folder_config(folder, min_crop_area=0.3, horizontal_flip=True),
        }[request.param],
        seed=5,
    )


def test_images_are_uint8_of_the_promised_shape_and_labels_are_ints_in_range(data_sets):
    shape = (data_sets.channels, data_sets.image_size, data_sets.image_size)
    items = [data_sets.train[0, index] for index in range(len(data_sets.train))] + list(data_sets.evaluation)
    assert len(items) == len(data_sets.train) + len(data_sets.evaluation)
    for image, label in items:
        assert image.dtype == torch.uint8 and image.shape == shape and image.is_contiguous()
        assert type(label) is int
    assert {label for _, label in items} == set(range(data_sets.num_classes))
    assert len(data_sets.class_names) == data_sets.num_classes
    assert len(data_sets.mean) == len(data_sets.std) == data_sets.channels


def test_a_training_image_depends_on_seed_epoch_and_index_alone(folder):
    config = folder_config(folder, min_crop_area=0.3, horizontal_flip=True)
    first, second, other_seed = (build_datasets(config, seed).train for seed in (5, 5, 6))
    torch.manual_seed(0)
    expected = {(epoch, index): first[epoch, index][0] for epoch in range(3) for index in range(6)}
    torch.manual_seed(1)
    for key in sorted(expected, reverse=True):
        assert torch.equal(second[key][0], expected[key])
    images = list(expected.values()) + [other_seed[0, index][0] for index in range(6)]
    assert len({image.numpy().tobytes() for image in images}) == len(images)


def test_loading_neither_reads_nor_moves_the_global_random_states(data_sets):
    def states():
        return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()

    before = states()
    for index in range(4):
        _ = data_sets.train[0, index], data_sets.evaluation[index]
    assert states() == before


@pytest.mark.parametrize("workers, method", [(0, None), (1, "fork"), (2, "fork"), (1, "spawn")])
def test_any_number_of_loading_processes_gives_the_same_images(folder, workers, method):
    train = build_datasets(folder_config(folder, min_crop_area=0.3, horizontal_flip=True), 5).train
    keys = [(epoch, index) for epoch in range(2) for index in reversed(range(6))]
    loader: DataLoader[Any] = DataLoader(
        train, batch_size=4, sampler=keys, num_workers=workers, multiprocessing_context=method
    )
    images, labels = (torch.cat(parts) for parts in zip(*loader))
    assert torch.equal(images, torch.stack([train[key][0] for key in keys]))
    assert labels.tolist() == [train[key][1] for key in keys]


def test_data_sets_survive_pickling(data_sets):
    copy = pickle.loads(pickle.dumps(data_sets))
    assert torch.equal(copy.train[3, 1][0], data_sets.train[3, 1][0])
    assert torch.equal(copy.evaluation[1][0], data_sets.evaluation[1][0])


def test_an_image_that_was_given_away_can_be_changed_without_harm(data_sets):
    for images, key in ((data_sets.train, (0, 0)), (data_sets.evaluation, 0)):
        before = images[key][0].clone()
        images[key][0].zero_()
        assert torch.equal(images[key][0], before)


def test_indices_out_of_range_and_of_the_wrong_kind_are_refused(data_sets):
    count = len(data_sets.evaluation)
    for index in (-1, count):
        with pytest.raises(IndexError, match=f"image {index} of {count}"):
            data_sets.evaluation[index]
    with pytest.raises(IndexError):
        data_sets.train[0, len(data_sets.train)]
    with pytest.raises(TypeError, match=r"\(epoch, index\), got 3"):
        data_sets.train[3]
    with pytest.raises(ValueError, match="-1"):
        data_sets.train[-1, 0]
    assert torch.equal(data_sets.evaluation[torch.tensor(1)][0], data_sets.evaluation[1][0])


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_outside_64_bits_is_refused_at_construction(seed):
    with pytest.raises(ValueError, match="64"):
        build_datasets(generated_config(), seed)


REFUSED = [
    ({"name": "fashion_mnist", "image_size": 32}, "image_size 32.*28 pixels"),
    ({"name": "cifar10", "image_size": 64}, "image_size 64.*32 pixels"),
    ({"name": "cifar100", "num_classes": 10}, "num_classes 10 has no effect with data.name cifar100"),
    ({"name": "fashion_mnist", "num_train_images": 10}, "num_train_images 10 has no effect"),
    ({"name": "image_folder", "num_eval_images": 10}, "num_eval_images 10 has no effect"),
    ({"name": "image_folder", "crop_padding": 4}, "crop_padding 4.*min_crop_area"),
    ({"name": "generated", "dir": "data"}, "dir 'data' has no effect with data.name generated"),
    ({"name": "generated", "image_size": 8, "crop_padding": 8}, "crop_padding 8 is not below the image size 8"),
]


@pytest.mark.parametrize("options, message", REFUSED)
def test_options_without_effect_or_meaning_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        build_datasets(DataConfig(**options), 0)


def test_plain_training_images_are_those_of_training_evenly_spaced_as_evaluation_shows_them(data_sets):
    plain = data_sets.plain_training_images(len(data_sets.train) // 2)
    assert len(plain) == len(data_sets.train) // 2
    for index in range(len(plain)):
        stored, label = data_sets.train.source.load(index * len(data_sets.train) // len(plain))
        assert plain[index][1] == label
        assert torch.equal(plain[index][0], data_sets.evaluation.transform(stored))
    assert len(data_sets.plain_training_images(10**9)) == len(data_sets.train)
    assert len(pickle.loads(pickle.dumps(plain))) == len(plain)
    with pytest.raises(IndexError):
        plain[len(plain)]
