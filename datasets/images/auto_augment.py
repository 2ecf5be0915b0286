"""AutoAugment after the other augmentation, drawn from the image's own random numbers."""

from __future__ import annotations

from typing import Callable

import torch

from datasets.data_sets import StoredImage
from datasets.images.torchvision_import import torchvision
from datasets.keyed_random import KeyedRandom


class AutoAugmented:
    """Another augmentation, then two operations (shear, rotation, colours, ...) of a policy that was found by search.

    The policy and its operations are torchvision's, which draws from torch's global generator of the CPU. That alone is
    seeded here for each image, with that image's random numbers, and put back as it was.

    Args:
        augmentation: (stored image, its random numbers) -> (C, H, W) uint8 tensor.
        policy: imagenet, cifar10 or svhn, after the images that it was found for.

    Source: Cubuk et al., "AutoAugment: Learning Augmentation Strategies from Data", 2019.
    """

    def __init__(self, augmentation: Callable[..., torch.Tensor], policy: str) -> None:
        self.augmentation = augmentation
        transforms = torchvision.transforms
        self.operations = transforms.AutoAugment(transforms.AutoAugmentPolicy(policy))

    def __call__(self, image: StoredImage, random: KeyedRandom) -> torch.Tensor:
        """Return the tensor for these random numbers."""
        output = self.augmentation(image, random)
        state = torch.default_generator.get_state()
        torch.default_generator.manual_seed(random.bits() >> 1)  # seeds are signed
        try:
            augmented: torch.Tensor = self.operations(output)
        finally:
            torch.default_generator.set_state(state)
        return augmented.contiguous()
