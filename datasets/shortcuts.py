"""Measure how much of the class stands in an image's colours alone, without any shape.

    python -m datasets.shortcuts --config scenes_rn10_bn [--set data.dir=DIR]

Numbers of an image, from pixels / 255:

    statistics    mean and standard deviation of each channel
    histograms    the share of each channel's values in 16 equal bins, and of all colours in 4 x 4 x 4 boxes

Each is standardized over the training images. Two models learn the class from statistics, histograms and both: the
majority of the 25 nearest neighbours (Euclidean distance, ties to the lowest label), and multinomial logistic
regression by L-BFGS with a small penalty. Printed is the share of evaluation images that each names rightly, beside
chance, the share of the largest class. Where a model does much better, a norm of single images, which removes means
and deviations, removes what distinguishes the classes: such images cannot compare norms.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from configs import load_config
from configs.command_line import run_command
from configs.exit_codes import EXPLAINED, explain
from configs.schema import DataConfig
from datasets import build_datasets
from datasets.errors import DataError
from datasets.images.transforms import to_tensor

NEIGHBOURS = 25
BINS = 16
BOXES = 4  # per channel
PENALTY = 1e-4  # of half the sum of squared weights, beside the mean cross entropy
STEPS = 100  # L-BFGS iterations at most
AT_ONCE = 1000  # images


def statistics(images: Tensor) -> Tensor:
    """Return means and standard deviations. Shape (N, C, H, W) in [0, 1] -> (N, 2 C)."""
    std, mean = torch.std_mean(images, dim=(2, 3), unbiased=False)
    return torch.cat((mean, std), dim=1)


def histograms(images: Tensor) -> Tensor:
    """Return the shares of values and of colours. Shape (N, C, H, W) in [0, 1] -> (N, C * BINS + BOXES^C)."""
    pixels = images.flatten(2)  # (N, C, H W)
    place = (pixels * BINS).long().clamp(max=BINS - 1)
    shares = [shares_of(channel, BINS) for channel in place.unbind(1)]
    box = torch.zeros_like(place[:, 0])
    for channel in pixels.unbind(1):
        box = box * BOXES + (channel * BOXES).long().clamp(max=BOXES - 1)
    return torch.cat([*shares, shares_of(box, BOXES ** pixels.shape[1])], dim=1)


def shares_of(numbers: Tensor, count: int) -> Tensor:
    """Return the share of each of 0 ... count - 1 in each row. Shape (N, P) int64 -> (N, count) float32."""
    one = torch.full(numbers.shape, 1 / numbers.shape[1])
    return torch.zeros(len(numbers), count).scatter_add_(1, numbers, one)


FEATURES = {"statistics": (statistics,), "histograms": (histograms,), "both": (statistics, histograms)}


def read_features(source: Any) -> Tuple[Dict[str, Tensor], Tensor]:
    """Return each kind of numbers, (N, F) float32, and the labels, (N,), of a half as it is stored.

    Raises:
        DataError: images of different sizes, or one that cannot be read.
    """
    parts: Dict[str, List[Tensor]] = {name: [] for name in FEATURES}
    labels: List[int] = []
    for first in range(0, len(source), AT_ONCE):
        loaded = [source.load(index) for index in range(first, min(first + AT_ONCE, len(source)))]
        labels += [label for _, label in loaded]
        tensors = [to_tensor(image) for image, _ in loaded]
        sizes = sorted({tuple(tensor.shape) for tensor in tensors})
        if len(sizes) > 1:
            raise DataError(f"images have different sizes ({sizes[0]}, {sizes[1]}); their colours are compared at one")
        images = torch.stack(tensors).float() / 255
        for name, functions in FEATURES.items():
            parts[name].append(torch.cat([function(images) for function in functions], dim=1))
    return {name: torch.cat(found) for name, found in parts.items()}, torch.tensor(labels)


def standardize(train: Tensor, evaluation: Tensor) -> Tuple[Tensor, Tensor]:
    """Return both with the training images' mean 0 and deviation 1; a number that is the same everywhere becomes 0."""
    std, mean = torch.std_mean(train, dim=0, unbiased=False)
    scale = torch.where(std > 1e-8, 1 / std, torch.zeros_like(std))  # 1e-8: rounding of shares that are equal
    return (train - mean) * scale, (evaluation - mean) * scale


def neighbours_accuracy(train: Tensor, train_labels: Tensor, evaluation: Tensor, labels: Tensor) -> float:
    """Return the share of `evaluation` whose NEIGHBOURS nearest of `train` mostly have its label."""
    num_classes = int(train_labels.max()) + 1
    squares = train.square().sum(1)
    right = 0
    for part, expected in zip(evaluation.split(AT_ONCE), labels.split(AT_ONCE)):
        distances = torch.addmm(squares, part, train.t(), alpha=-2)  # without the part's own squares: the same order
        nearest = distances.topk(min(NEIGHBOURS, len(train)), largest=False).indices
        votes = functional.one_hot(train_labels[nearest], num_classes).sum(1)
        # argmax of equal values may be any of them
        found = (votes * num_classes - torch.arange(num_classes)).argmax(1)
        right += int((found == expected).sum())
    return right / len(labels)


def logistic_accuracy(train: Tensor, train_labels: Tensor, evaluation: Tensor, labels: Tensor) -> float:
    """Return the share of `evaluation` that a linear softmax model of `train` names rightly."""
    num_classes = int(train_labels.max()) + 1
    weight = torch.zeros(num_classes, train.shape[1], requires_grad=True)
    bias = torch.zeros(num_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(functional.linear(train, weight, bias), train_labels)
        loss = loss + PENALTY / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return float((functional.linear(evaluation, weight, bias).argmax(1) == labels).float().mean())


MODELS = {f"{NEIGHBOURS} nearest neighbours": neighbours_accuracy, "logistic regression": logistic_accuracy}


def measure(config: DataConfig) -> Tuple[float, Dict[str, Dict[str, float]]]:
    """Return chance, and each model's accuracy on each kind of numbers.

    Raises:
        ConfigError, DataError: as build_datasets and read_features.
    """
    data_sets = build_datasets(config, seed=0)
    train, train_labels = read_features(data_sets.train.source)
    evaluation, labels = read_features(data_sets.evaluation.source)
    accuracies: Dict[str, Dict[str, float]] = {}
    for name in FEATURES:
        standardized = standardize(train[name], evaluation[name])
        accuracies[name] = {
            model: accuracy(standardized[0], train_labels, standardized[1], labels)
            for model, accuracy in MODELS.items()
        }
    return float(np.bincount(labels.numpy()).max() / len(labels)), accuracies


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Print a table; return 0, 2 for a configuration that cannot be or 3 for bad data."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.shortcuts", description="Measure what colours alone reveal about the class."
    )
    parser.add_argument(
        "--config", required=True, metavar="NAME|PATH", help="an experiment of configs/, or a YAML file"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value; null leaves it out"
    )
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config, options.set).data
        chance, accuracies = measure(config)
    except EXPLAINED as error:
        return explain(error)
    print(f"| {config.name}; chance {chance:.3f} | " + " | ".join(MODELS) + " |\n" + "|---" * (len(MODELS) + 1) + "|")
    for name, row in accuracies.items():
        print(f"| {name} | " + " | ".join(f"{accuracy:.3f}" for accuracy in row.values()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
