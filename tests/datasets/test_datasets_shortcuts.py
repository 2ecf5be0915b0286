"""Shortcuts: the models find what stands in colours, and nothing where nothing does."""

from pathlib import Path
from typing import Tuple

import numpy as np
import pytest
import torch
from made_images import save_noise
from PIL import Image
from torch import Tensor

from datasets import shortcuts
from datasets.shortcuts import histograms, logistic_accuracy, neighbours_accuracy, standardize, statistics


def test_statistics_and_histograms_of_an_image_by_hand():
    image = torch.zeros(1, 3, 2, 2)
    image[0, 0] = torch.tensor([[0, 0], [1, 1]])
    image[0, 1] = 0.5
    assert statistics(image)[0].tolist() == pytest.approx([0.5, 0.5, 0, 0.5, 0, 0])
    found = histograms(image)[0]
    assert found.shape == (3 * 16 + 64,)
    expected = {0: 0.5, 15: 0.5, 16 + 8: 1.0, 32: 1.0, 48 + 2 * 4: 0.5, 48 + 3 * 16 + 2 * 4: 0.5}
    assert {place: float(found[place]) for place in found.nonzero()[:, 0].tolist()} == pytest.approx(expected)


def test_numbers_are_standardized_by_the_training_images_and_constant_ones_vanish():
    train = torch.tensor([[1.0, 7.0], [3.0, 7.0]])
    found = standardize(train, torch.tensor([[4.0, 9.0]]))
    assert found[0].tolist() == [[-1, 0], [1, 0]] and found[1].tolist() == [[2, 0]]


def points(count: int, seed: int, distance: float) -> Tuple[Tensor, Tensor]:
    """Points of three classes around the corners of a triangle."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    corners = distance * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    return corners[labels] + torch.randn(count, 2, generator=random), labels


@pytest.mark.parametrize("model", shortcuts.MODELS.values(), ids=shortcuts.MODELS)
def test_models_are_right_where_classes_lie_apart_and_at_chance_where_they_do_not(model):
    assert model(*points(600, 0, 20), *points(1500, 1, 20)) == 1
    # chance is 1/3 with a standard deviation of .012
    assert abs(model(*points(600, 0, 0), *points(1500, 1, 0)) - 1 / 3) < 0.05


def test_neighbours_are_those_of_all_distances_and_ties_go_to_the_lowest_label():
    train, train_labels = points(400, 2, 1)
    evaluation, labels = points(1100, 3, 1)
    right = 0
    for point, label in zip(evaluation.double().numpy(), labels.tolist()):
        nearest = np.argsort(((train.double().numpy() - point) ** 2).sum(1))[:25]
        right += int(np.bincount(train_labels.numpy()[nearest]).argmax()) == label
    # float32 may exchange two neighbours of nearly equal distance
    assert abs(neighbours_accuracy(train, train_labels, evaluation, labels) - right / 1100) <= 2 / 1100
    two = torch.tensor([[0.0], [1.0]])
    assert neighbours_accuracy(two, torch.tensor([1, 0]), torch.tensor([[0.1]]), torch.tensor([0])) == 1


def test_logistic_regression_reaches_the_best_line():
    """Between two normal distributions of equal spread at distance 2 it is right in Phi(1) = .841 of cases."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(8000) % 2
    places = 2.0 * labels[:, None] + torch.randn(8000, 1, generator=random)
    accuracy = logistic_accuracy(places[:4000], labels[:4000], places[4000:], labels[4000:])
    assert abs(accuracy - 0.841) < 0.02, "three standard deviations of 4,000 trials"


def write_coloured(folder: Path, bright_by_class: bool) -> None:
    """Noise of three classes; each class a brightness of its own, or all the same."""
    for half, count in (("train", 30), ("val", 10)):
        for label in range(3):
            for number in range(count):
                path = folder / half / f"class{label}" / f"{number}.png"
                save_noise(path, (16, 16), seed=10_000 * (half == "val") + 100 * label + number)
                if bright_by_class:
                    Image.fromarray(np.asarray(Image.open(path)) // 4 + np.uint8(60 * label)).save(path)


@pytest.mark.parametrize("bright_by_class", [True, False])
def test_the_command_shows_a_shortcut_where_there_is_one(tmp_path, capsys, bright_by_class):
    write_coloured(tmp_path, bright_by_class)
    assert shortcuts.main(["--config", "rn50_gn8pn", "--set", f"data.dir={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| image_folder; chance 0.333 | 25 nearest neighbours | logistic regression |"
    accuracies = [float(cell) for line in lines[2:] for cell in line.split("|")[2:4]]
    assert [line.split()[1] for line in lines[2:]] == ["statistics", "histograms", "both"] and len(accuracies) == 6
    # chance of 30 images has a standard deviation of .086
    assert min(accuracies[:2]) > 0.95 if bright_by_class else max(accuracies) < 0.67


def test_what_cannot_be_measured_is_said(tmp_path, capsys):
    write_coloured(tmp_path, False)
    save_noise(tmp_path / "val" / "class0" / "0.png", (20, 16))
    assert shortcuts.main(["--config", "rn50_gn8pn", "--set", f"data.dir={tmp_path}"]) == 3
    assert "different sizes" in capsys.readouterr().err
    assert shortcuts.main(["--config", "nothing"]) == 2
    assert shortcuts.main(["--config", "rn50_gn8pn", "--set", f"data.dir={tmp_path / 'none'}"]) == 3
