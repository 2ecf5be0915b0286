"""Images in the form of one call of the device: its combined batch, which always has the same size."""

from __future__ import annotations

import math
from typing import Iterable, Iterator, List, Optional, Tuple

import torch

from backends.base import Batch
from configs import BatchPlan, ConfigError
from training.draws import StepDraws
from training.loss import IGNORED


def combined_batch(
    batch: Batch, draws: StepDraws, plan: BatchPlan, process: int, seed: int, step: int
) -> List[torch.Tensor]:
    """Return the inputs of one training call: images, labels, and what is drawn for them where anything is.

    PopTorch cuts its inputs into parts in the order [device iteration][accumulation][replica]. Each part is one
    micro-batch, here with the images in front that its own are mixed with.

    Args:
        batch: of `device_iterations` weight updates, each with its `draws.partners` images in front.
        draws: what is random in a step.
        plan: the batch arithmetic.
        process: whose part of the global batch it is.
        seed: keys the draws.
        step: number of the first weight update.
    """
    images, labels = batch
    inputs = [images, labels]
    if draws.partners:
        places = torch.tensor(_places_with_partners(plan, draws.partners))
        inputs = [images[places], labels[places]]
    if draws.columns:
        first = process * plan.local_batch_size
        rows = [
            draws.rows(seed, step + update, plan.global_batch_size, first, first + plan.local_batch_size)
            for update in range(plan.device_iterations)
        ]
        inputs.append(torch.cat(rows))
    return inputs


def check_whole_calls(plan: BatchPlan, steps_per_epoch: int, first_step: int) -> None:
    """Refuse calls of the device that do not end with the epoch that begins at `first_step`.

    Raises:
        ConfigError: as said.
    """
    updates, left = plan.device_iterations, steps_per_epoch - first_step
    if left % updates:
        divisors = [size for size in range(1, left + 1) if left % size == 0 and size <= updates]
        raise ConfigError(
            f"ipu.device_iterations {updates} does not divide the {left} weight updates that are left of this "
            f"epoch's {steps_per_epoch}; use {divisors[-1]}, or another batch.global_batch_size"
        )


def _places_with_partners(plan: BatchPlan, partners: int) -> List[int]:
    size = plan.local_batch_size + partners
    return [
        update * size + place
        for update in range(plan.device_iterations)
        for start in range(0, plan.local_batch_size, plan.micro_batch_size)
        for place in range(start, start + plan.micro_batch_size + partners)
    ]


def padded_batches(batches: Iterable[Batch], size: int, images: int, processes: int) -> Iterator[Batch]:
    """Yield evaluation batches of exactly `size` places: the free ones hold black images with the label IGNORED.

    Every process gives equally many, since devices that run as one program wait for each other at each call.

    Args:
        batches: of this process.
        size: places of a batch.
        images: of all processes.
        processes: how many evaluate.
    """
    calls = math.ceil(math.ceil(images / processes) / size)
    like: Optional[Tuple[torch.Tensor, torch.Tensor]] = None
    for like in batches:
        calls -= 1
        yield _padded(*like, size)
    for _ in range(calls if like is not None else 0):
        assert like is not None
        yield _padded(like[0][:0], like[1][:0], size)


def _padded(images: torch.Tensor, labels: torch.Tensor, size: int) -> Batch:
    missing = size - len(labels)
    if missing == 0:
        return images, labels
    black = images.new_zeros((missing, *images.shape[1:]))
    return torch.cat([images, black]), torch.cat([labels, labels.new_full((missing,), IGNORED)])
