"""AutoAugment, RandAugment and random erasing after other augmentation, drawn from an image's own random numbers."""

from __future__ import annotations

from typing import Any, Callable, List, Tuple

import torch

from configs.schema import DataConfig
from datasets.data_sets import StoredImage
from datasets.images.torchvision_import import torchvision
from datasets.keyed_random import KeyedRandom

RAND_AUGMENT_OPERATIONS = 2


class RandomlyOperated:
    """Another augmentation, then torchvision's random operations.

    They draw from torch's global generator of the CPU. That alone is seeded here for each image, with that image's
    random numbers, and put back as it was.

    Args:
        augmentation: (stored image, its random numbers) -> (C, H, W) uint8 tensor.
        operations: each (C, H, W) uint8 tensor -> the same, in their order.
    """

    def __init__(
        self,
        augmentation: Callable[..., torch.Tensor],
        operations: List[Callable[[torch.Tensor], torch.Tensor]],
    ) -> None:
        self.augmentation = augmentation
        self.operations = operations

    def __call__(self, image: StoredImage, random: KeyedRandom) -> torch.Tensor:
        """Return the tensor for these random numbers."""
        output = self.augmentation(image, random)
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(random.bits() >> 1)  # seeds are signed
        try:
            for operation in self.operations:
                output = operation(output)
        finally:
            torch.default_generator.set_state(state)
        return output.contiguous()


def random_operations(config: DataConfig, mean: Tuple[float, ...]) -> List[Callable[[torch.Tensor], torch.Tensor]]:
    """Return the operations that a configuration asks for, in their order.

    AutoAugment    two operations (shear, rotation, colours, ...) of a policy found by search
    RandAugment    rand_augment_operations of the same kind, at one strength, each drawn from all
    erasing        with probability random_erasing, a rectangle of 2 to 33 % of the image, ratio of its sides .3 to 3.3,
                   takes the mean colour of the data set, which is 0 for the network

    Args:
        config: section `data`.
        mean: per channel, of pixels scaled to [0, 1].

    Source: Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data", 2019; Cubuk et al., "RandAugment:
        Practical Automated Data Augmentation with a Reduced Search Space", 2020; Zhong et al., "Random Erasing Data
        Augmentation", 2020.
    """
    transforms = torchvision.transforms
    operations: List[Any] = []
    if config.auto_augment is not None:
        operations.append(transforms.AutoAugment(transforms.AutoAugmentPolicy(config.auto_augment)))
    if config.rand_augment_magnitude is not None:
        count = config.rand_augment_operations or RAND_AUGMENT_OPERATIONS
        operations.append(transforms.RandAugment(count, config.rand_augment_magnitude))
    if config.random_erasing is not None:
        colour = [round(255 * value) for value in mean]
        operations.append(transforms.RandomErasing(config.random_erasing, value=colour))
    return operations
