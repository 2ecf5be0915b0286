"""From a stored image to the (C, H, W) uint8 tensor that a network is given, with or without augmentation.

All resizing is bilinear with antialiasing, the same for every decoder and data set. The random numbers are not
torchvision's: its random transforms draw from torch's global generator, which depends on the process and on everything
drawn before. Here each image comes with its own KeyedRandom. Cropping with padding and mirroring copy slices of arrays:
exactly torchvision's results at a tenth of their cost, which for a 28-pixel image is all dispatch (a test compares
them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from datasets.data_sets import StoredImage
from datasets.images.encoded_image import EncodedImage
from datasets.images.native import ResizedWindow, Window, native_images
from datasets.keyed_random import KeyedRandom

# torch's own resizing of bytes takes half of Pillow's time, and is wrong before 2.1: up to 198 off in channels_last.
TORCH_RESIZES_BYTES = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 1)
ASPECT_RATIOS = (3 / 4, 4 / 3)
CROP_ATTEMPTS = 10
# Evaluation crops the centre 224 of 256 pixels, or the same share of another size.
EVALUATION_SHARE = 224 / 256


def to_tensor(image: StoredImage) -> torch.Tensor:
    """Return a contiguous (C, H, W) uint8 tensor with memory of its own."""
    if isinstance(image, EncodedImage):
        return torch.from_numpy(image.pixels()).permute(2, 0, 1).contiguous()
    return torch.from_numpy(image.copy())


def height_width(image: StoredImage) -> Tuple[int, int]:
    return (image.height, image.width) if isinstance(image, EncodedImage) else image.shape[-2:]


def resize(image: torch.Tensor, height: int, width: int, mirror: bool = False) -> torch.Tensor:
    """Return `image`, bilinear with antialiasing, as a contiguous (C, height, width) tensor.

    A pixel is the mean of those of `image` under a triangle of half-width max(1, scale) around its place. Pillow, older
    versions of torch and newer ones round intermediate results differently: by at most 1. The C++ of native.py gives
    what newer ones give.

    Args:
        image: (C, H, W) uint8, C 1 or 3, any strides.
        height: of the result.
        width: of the result.
        mirror: reverse each row of the result.
    """
    # as decoders give it; arrays in memory are planes, for which the C++ would gain nothing
    is_interleaved = image.shape[0] == 3 and image.stride(0) == 1 and image.stride(2) == 3
    native = native_images() if is_interleaved and TORCH_RESIZES_BYTES else None
    if native is not None:
        target = ResizedWindow.all_of((image.shape[1], image.shape[2]), (height, width), mirror)
        output = native.resize(image.permute(1, 2, 0).numpy(), (0, 0), target)
        if output is not None:
            return output
    resized = resize_with_libraries(image, height, width)
    return resized.flip(-1) if mirror else resized


def resize_with_libraries(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the same by torch, or by Pillow where torch's is wrong."""
    if TORCH_RESIZES_BYTES:
        output = functional.interpolate(image.unsqueeze(0), size=(height, width), mode="bilinear", antialias=True)
        return output.squeeze(0).contiguous()
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    stored = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    resized = np.array(stored.resize((width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy(resized.reshape(height, width, -1)).permute(2, 0, 1).contiguous()


def shifted_crop(image: np.ndarray, down: int, right: int, mirror: bool) -> torch.Tensor:
    """Return the window of `image`'s own size that starts at (down, right); outside the image it is 0.

    Args:
        image: (C, H, W) uint8.
        down: first row, possibly negative.
        right: first column, possibly negative.
        mirror: reverse each row of the result.
    """
    height, width = image.shape[-2:]
    output = np.zeros(image.shape, dtype=np.uint8)  # zeros_like would keep the strides of a transposed image
    rows, columns = max(0, height - abs(down)), max(0, width - abs(right))
    top, left = max(0, -down), max(0, -right)
    source_top, source_left = max(0, down), max(0, right)
    target = output[:, :, ::-1] if mirror else output
    target[:, top : top + rows, left : left + columns] = image[
        :, source_top : source_top + rows, source_left : source_left + columns
    ]
    return torch.from_numpy(output)


def random_window(height: int, width: int, min_crop_area: float, random: KeyedRandom) -> Window:
    """Return a random window of an image of this size.

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
            return Window(top, left, crop_height, crop_width)
    crop_width = min(width, max(1, round(height * ASPECT_RATIOS[1])))
    crop_height = min(height, max(1, round(width / ASPECT_RATIOS[0])))
    return Window((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def resized_crop(image: StoredImage, window: Window, image_size: int, mirror: bool = False) -> torch.Tensor:
    """Return a window of `image`, resized to image_size pixels per side, each row reversed if `mirror`.

    A JPEG image is decoded no larger than needed: at the smallest of 1, 1/2, 1/4, 1/8 of its size at which the window
    still has image_size pixels per side. The window's place and size are then rounded down to whole pixels there.
    """
    if isinstance(image, EncodedImage):
        shrink = image.largest_shrink(window.height, window.width, image_size)
        part = image.window(Window(*(number // shrink for number in window)), shrink).transpose(2, 0, 1)
    else:
        top, left, height, width = window
        # arrays in memory may be read-only, which torch has no notion of
        part = image[:, top : top + height, left : left + width].copy()
    return resize(torch.from_numpy(part), image_size, image_size, mirror)


@dataclass(frozen=True)
class CentreCrop:
    """Short side resized to short_side pixels, then the central image_size x image_size pixels.

    JPEG images are decoded at their full size here: these are the pixels that published results were evaluated on.

    Attributes:
        image_size: pixels per side of the result.
        short_side: default: image_size * 256 / 224, rounded.
    """

    image_size: int
    short_side: Optional[int] = None

    def __call__(self, image: EncodedImage, mirror: bool = False) -> torch.Tensor:
        """Return the (3, image_size, image_size) tensor, each row reversed if `mirror`."""
        short_side = self.short_side or round(self.image_size / EVALUATION_SHARE)
        shortest = min(image.height, image.width)
        # whole numbers are cut, not rounded, as torchvision does it
        height, width = (short_side * side // shortest for side in (image.height, image.width))
        top, left = (round((side - self.image_size) / 2) for side in (height, width))
        target = ResizedWindow(
            (image.height, image.width), (height, width), Window(top, left, self.image_size, self.image_size), mirror
        )
        native = native_images() if TORCH_RESIZES_BYTES else None
        if native is not None and native.resizes:
            source = target.source()
            output = native.resize(image.window(source), (source.top, source.left), target)
            if output is not None:
                return output
        whole = resize_with_libraries(torch.from_numpy(image.pixels()).permute(2, 0, 1), height, width)
        output = whole[:, top : top + self.image_size, left : left + self.image_size]
        return output.flip(-1) if mirror else output.contiguous()


@dataclass(frozen=True)
class Augmentation:
    """Random crop and mirroring of a training image.

    Attributes:
        image_size: pixels per side of the result.
        crop_padding: crop a window of the image's own size from the image with this many zeros at each side.
        min_crop_area: crop by random_window and resize.
        horizontal_flip: mirror with probability 1/2.

        same_size: all images have image_size already. Others need min_crop_area, or are taken by CentreCrop.
    """

    image_size: int
    crop_padding: Optional[int]
    min_crop_area: Optional[float]
    horizontal_flip: bool
    same_size: bool = True

    def __call__(self, image: StoredImage, random: KeyedRandom) -> torch.Tensor:
        """Return the (C, image_size, image_size) tensor for these random numbers."""
        mirror = self.horizontal_flip and random.integer(2) == 1
        if self.min_crop_area is not None:
            window = random_window(*height_width(image), self.min_crop_area, random)
            return resized_crop(image, window, self.image_size, mirror)
        if isinstance(image, EncodedImage) and not self.same_size:
            return CentreCrop(self.image_size)(image, mirror)
        pixels = image.pixels().transpose(2, 0, 1) if isinstance(image, EncodedImage) else image
        padding = self.crop_padding or 0
        down, right = random.integer(2 * padding + 1) - padding, random.integer(2 * padding + 1) - padding
        return shifted_crop(pixels, down, right, mirror)
