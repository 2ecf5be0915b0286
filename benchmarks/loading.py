"""How fast loaders give batches: beside their images in one thread, and while a network trains. See benchmarks.data."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

import numpy as np
import torch
from torch.nn import functional

from backends.image_loader import build_loader
from benchmarks.protocol import seconds
from datasets.data_sets import TrainingImages
from datasets.images.transforms import Augmentation
from datasets.keyed_random import KeyedRandom
from datasets.memory import ImagesInMemory
from models import build_model
from normact import NormActFactory

WORKERS = (0, 1, 2, 4)
ONE_THREAD = "one thread"  # images one by one, in no batch
SMALL_COUNT = 10_000
EPOCHS_TRAINED = 4  # of the images in time_training


def small_images(channels: int, side: int, padding: int) -> TrainingImages:
    """Return images in memory, shifted and mirrored, of the size of a public data set's: what they show costs nothing.

    Args:
        channels: of each image.
        side: in pixels.
        padding: of the random shift.
    """
    pixels = KeyedRandom(0).bytes(SMALL_COUNT * channels * side * side).reshape(SMALL_COUNT, channels, side, side)
    source = ImagesInMemory(pixels, np.zeros(SMALL_COUNT, dtype=np.int64))
    return TrainingImages(source, Augmentation(side, padding, None, horizontal_flip=True), seed=0)


def image_keys(count: int, number: int) -> List[Any]:
    """Return (epoch, index) of the first `number` images of a data set of `count`, epoch after epoch."""
    return [divmod(place, count) for place in range(number)]


def index_batches(keys: Sequence[Any], size: int) -> List[List[Any]]:
    return [list(keys[start : start + size]) for start in range(0, len(keys) - size + 1, size)]


def time_images(train: Any, number: int) -> float:
    """Return images per second of one thread that loads one after the other."""
    keys = image_keys(len(train), number)
    start = time.perf_counter()
    for key in keys:
        _ = train[key]
    return number / (time.perf_counter() - start)


def time_loader(
    train: Any,
    batch: int,
    number: int,
    workers: int,
    step: Optional[Callable[[torch.Tensor, torch.Tensor], None]] = None,
) -> float:
    """Return images per second of a loader when it is under way.

    Args:
        train: indexed by (epoch, index).
        batch: images of one.
        number: of the images that count, at least.
        workers: loading processes.
        step: is given each batch.
    """
    not_counted = 1 + 2 * workers  # starting takes longer than a batch, and the first ones come another way
    batches = index_batches(image_keys(len(train), number + (not_counted + 1) * batch), batch)
    loader = iter(build_loader(train, batches, workers))
    for pixels, labels in itertools.islice(loader, not_counted):
        if step is not None:
            step(pixels, labels)
    images, start = 0, time.perf_counter()
    for pixels, labels in loader:
        if step is not None:
            step(pixels, labels)
        images += len(labels)
    return images / (time.perf_counter() - start)


def time_loaders(name: str, train: Any, batch: int, number: int, repetitions: int) -> Dict[str, Any]:
    """Return images per second of one thread and of loaders, and their ratios to it: medians over repetitions.

    Args:
        name: of the images.
        train: indexed by (epoch, index).
        batch: images of one.
        number: of the images of one thread or loading process in a repetition.
        repetitions: of all of them in turn.
    """
    rates: Dict[str, List[float]] = {}
    for _ in range(repetitions):
        rates.setdefault(ONE_THREAD, []).append(time_images(train, number))
        for workers in WORKERS:
            rate = time_loader(train, batch, number * max(1, min(workers, 2)), workers)
            rates.setdefault(str(workers), []).append(rate)
    shares = {
        loader: statistics.median(rate / thread for rate, thread in zip(rates[loader], rates[ONE_THREAD]))
        for loader in map(str, WORKERS)
    }
    return {
        "name": name,
        "batch": batch,
        "images_per_second": {way: statistics.median(values) for way, values in rates.items()},
        "thread_ratio": shares,
    }


def build_step() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Return one weight update of a small network."""
    torch.manual_seed(0)
    network = build_model("resnet8", num_classes=2, norm_act=NormActFactory(norm="group", num_groups=4), width=8)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)

    def step(pixels: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        small = functional.avg_pool2d(pixels.float() / 255, 4)
        functional.cross_entropy(network(small), labels).backward()
        optimizer.step()

    return step


def time_training(name: str, train: Any, batch: int, workers: int) -> Dict[str, Any]:
    """Return images per second of the loader alone, of the network alone, and of both together.

    Args:
        name: of the images.
        train: indexed by (epoch, index).
        batch: images of one.
        workers: loading processes.
    """
    step = build_step()
    pixels, labels = torch.stack([train[0, index][0] for index in range(batch)]), torch.zeros(batch, dtype=torch.long)
    step(pixels, labels)
    network = batch / seconds(lambda: step(pixels, labels), calls=8)
    number = EPOCHS_TRAINED * len(train)
    return {
        "name": f"{name}, loading processes: {workers}",
        "loader_alone": time_loader(train, batch, number, workers),
        "network_alone": network,
        "together": time_loader(train, batch, number, workers, step),
    }
