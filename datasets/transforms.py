"""From a stored image to the (C, H, W) uint8 tensor that a network is given, with or without augmentation.

Resizing is torchvision's, bilinear with antialiasing. The random numbers are not: torchvision's random transforms
draw from torch's global generator, which depends on the process and on everything drawn before. Here each image comes
with its own KeyedRandom. Cropping with padding and mirroring copy slices of arrays: exactly torchvision's results at
a tenth of their cost, which for a 28-pixel image is all dispatch (a test compares them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np
import torch
from PIL import Image

from datasets.data_sets import StoredImage
from datasets.keyed_random import KeyedRandom
from datasets.torchvision_import import torchvision

functional = torchvision.transforms.functional

ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
# Evaluation crops the centre 224 of 256 pixels, or the same share of another size.
EVALUATION_SHARE = 224 / 256


def to_tensor(image: StoredImage) -> torch.Tensor:
    """Return a (C, H, W) uint8 tensor with memory of its own."""
    if isinstance(image, Image.Image):
        return functional.pil_to_tensor(image).contiguous()
    return torch.from_numpy(image.copy())


def image_height_width(image: StoredImage) -> Tuple[int, int]:
    if isinstance(image, Image.Image):
        return image.height, image.width
    return image.shape[-2], image.shape[-1]


def shifted_crop(image: np.ndarray, down: int, right: int, mirror: bool) -> torch.Tensor:
    """Return the window of `image`'s own size that starts at (down, right); outside the image it is 0.

    Args:
        image: (C, H, W) uint8.
        down: first row, possibly negative.
        right: first column, possibly negative.
        mirror: reverse each row of the result.
    """
    height, width = image.shape[-2:]
    output = np.zeros_like(image)
    rows, columns = max(0, height - abs(down)), max(0, width - abs(right))
    top, left = max(0, -down), max(0, -right)
    source_top, source_left = max(0, down), max(0, right)
    target = output[:, :, ::-1] if mirror else output
    target[:, top : top + rows, left : left + columns] = image[
        :, source_top : source_top + rows, source_left : source_left + columns
    ]
    return torch.from_numpy(output)


def random_window(height: int, width: int, min_crop_area: float, random: KeyedRandom) -> Tuple[int, int, int, int]:
    """Return (top, left, height, width) of a random crop.

    Its area is a share of the image's that is uniform in [min_crop_area, 1], its aspect ratio (width / height)
    log-uniform in [3/4, 4/3], its place uniform. A pair that does not fit is drawn again; after ten that did not,
    which takes a very long or a hardly cropped image, it is the largest centred window with an allowed aspect ratio,
    whatever its area. Source: Szegedy et al., "Going Deeper with Convolutions", 2015, section 6.
    """
    for _ in range(CROP_ATTEMPTS):
        area = height * width * random.uniform(min_crop_area, 1)
        ratio = math.exp(random.uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])))
        crop_height, crop_width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < crop_height <= height and 0 < crop_width <= width:
            top, left = random.integer(height - crop_height + 1), random.integer(width - crop_width + 1)
            return top, left, crop_height, crop_width
    crop_width = min(width, max(1, round(height * ASPECT_RATIOS[1])))
    crop_height = min(height, max(1, round(width / ASPECT_RATIOS[0])))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def resized_crop(image: StoredImage, window: Tuple[int, int, int, int], image_size: int) -> torch.Tensor:
    """Return `window` = (top, left, height, width) of `image`, resized to image_size pixels per side."""
    whole = image if isinstance(image, Image.Image) else to_tensor(image)
    bilinear = functional.InterpolationMode.BILINEAR
    output = functional.resized_crop(
        whole, *window, size=[image_size, image_size], interpolation=bilinear, antialias=True
    )
    return output if isinstance(output, torch.Tensor) else to_tensor(output)


@dataclass(frozen=True)
class CentreCrop:
    """Short side resized to image_size * 256 / 224 (rounded), then the central image_size x image_size pixels."""

    image_size: int

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return the (C, image_size, image_size) tensor."""
        short_side = round(self.image_size / EVALUATION_SHARE)
        resized = functional.resize(image, [short_side], functional.InterpolationMode.BILINEAR, antialias=True)
        return to_tensor(functional.center_crop(resized, [self.image_size, self.image_size]))


@dataclass(frozen=True)
class Augmentation:
    """Random crop and mirroring of a training image.

    Attributes:
        image_size: pixels per side of the result.
        crop_padding: crop a window of the image's own size from the image with this many zeros at each side.
        min_crop_area: crop by random_window and resize.
        horizontal_flip: mirror with probability 1/2.

    With neither crop, arrays are taken whole (they have image_size already) and images of any size by CentreCrop.
    """

    image_size: int
    crop_padding: Optional[int]
    min_crop_area: Optional[float]
    horizontal_flip: bool

    def __call__(self, image: StoredImage, random: KeyedRandom) -> torch.Tensor:
        """Return the (C, image_size, image_size) tensor for these random numbers."""
        mirror = self.horizontal_flip and random.integer(2) == 1
        if self.min_crop_area is not None:
            window = random_window(*image_height_width(image), self.min_crop_area, random)
            output = resized_crop(image, window, self.image_size)
        elif isinstance(image, Image.Image):
            output = CentreCrop(self.image_size)(image)
        else:
            padding = self.crop_padding or 0
            down, right = random.integer(2 * padding + 1) - padding, random.integer(2 * padding + 1) - padding
            return shifted_crop(image, down, right, mirror)
        return output.flip(-1) if mirror else output
