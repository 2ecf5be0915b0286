"""Which image goes where: a pure function of (seed, epoch, step), whatever the number of processes and workers."""

import math
from typing import Iterator, List, Optional, Sequence, Tuple

import torch
from torch.utils.data import Sampler
from typing_extensions import Protocol

from configs import BatchPlan

TrainingIndex = Tuple[int, int]  # (epoch, index): both key the augmentation


class Parts(Protocol):
    """Consecutive parts of a data set, files that hold many images, which are read a few at a time.

    Attributes:
        sizes: images of each part.
        together: parts whose images are shuffled among each other.
    """

    @property
    def sizes(self) -> Sequence[int]: ...

    @property
    def together(self) -> int: ...


def image_order(seed: int, epoch: int, num_images: int, parts: Optional[Parts] = None) -> List[int]:
    """Return a permutation of `num_images` images, keyed on (seed, epoch).

    With `parts`, these are shuffled and then the images of each `parts.together` of them.
    """
    generator = torch.Generator().manual_seed(_mixed(_mixed(seed) + epoch))
    if parts is None:
        return torch.randperm(num_images, generator=generator).tolist()
    images = torch.arange(num_images).split(list(parts.sizes))
    shuffled = torch.randperm(len(images), generator=generator).tolist()
    order: List[int] = []
    for first in range(0, len(images), parts.together):
        group = torch.cat([images[part] for part in shuffled[first : first + parts.together]])
        order += group[torch.randperm(len(group), generator=generator)].tolist()
    return order


class TrainingBatches(Sampler):
    """Yield this process's images of each device call of one epoch, from `first_step` on.

    Weight update s of the epoch has the images order[s * G : (s + 1) * G], G = global_batch_size; replica r has the
    r-th of `replicas` consecutive parts of it. The last images of the order that do not fill a global batch wait for
    another epoch's order.

    With `partners`, the images before a process's part come with it, in front of it: the global batch is a circle, so
    before its first image comes its last (see training.mixing).

    With `parts`, the order is one that reads few files at a time: see image_order.
    """

    def __init__(
        self,
        num_images: int,
        plan: BatchPlan,
        process: int,
        seed: int,
        epoch: int,
        first_step: int = 0,
        partners: int = 0,
        parts: Optional[Parts] = None,
    ) -> None:
        self.num_images, self.plan, self.process = num_images, plan, process
        self.seed, self.epoch, self.first_step, self.partners = seed, epoch, first_step, partners
        self.parts = parts

    def __len__(self) -> int:
        steps = self.num_images // self.plan.global_batch_size - self.first_step
        return max(0, steps // self.plan.device_iterations)

    def __iter__(self) -> Iterator[List[TrainingIndex]]:
        order = image_order(self.seed, self.epoch, self.num_images, self.parts)
        size, local = self.plan.global_batch_size, self.plan.local_batch_size
        for call in range(len(self)):
            batch: List[TrainingIndex] = []
            for iteration in range(self.plan.device_iterations):
                step = self.first_step + call * self.plan.device_iterations + iteration
                first = self.process * local
                places = range(first - self.partners, first + local)
                batch += [(self.epoch, order[step * size + place % size]) for place in places]
            yield batch


class EvaluationBatches(Sampler):
    """Every image exactly once over all processes: process p has the images p, p + processes, p + 2 * processes, ..."""

    def __init__(self, num_images: int, batch_size: int, process: int, processes: int) -> None:
        self.indices = range(process, num_images, processes)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def __iter__(self) -> Iterator[List[int]]:
        for start in range(0, len(self.indices), self.batch_size):
            yield list(self.indices[start : start + self.batch_size])


def step_key(seed: int, step: int) -> int:
    """Seed of what is drawn for one weight update (training.draws): resuming needs no saved random state."""
    return _mixed(_mixed(_mixed(seed) + step) + 1)


def _mixed(value: int) -> int:
    # The finalizer of splitmix64: neighbouring inputs share no bits of their outputs. 63 bits, as seeds are signed.
    value = (value + 0x9E3779B97F4A7C15) % 2**64
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return (value ^ (value >> 31)) % 2**63
