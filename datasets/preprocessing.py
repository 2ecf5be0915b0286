"""What a data set's images are turned into before a network sees them, for an image that is not of the data set."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Tuple

import torch
from PIL import Image

from configs.bounded_file import read_bounded
from configs.schema import DataConfig
from datasets import ANY_SIZE, MODULES, NATIVE_SIZES
from datasets.errors import DataError
from datasets.images.decode import MAX_BYTES, pixel_limit
from datasets.images.encoded_image import EncodedImage
from datasets.images.transforms import EVALUATION_SHARE, CentreCrop

# The modules that say how image_shards and the CIFAR sets are scaled are those of others, or say it by name.
_STATISTICS_IN = {**MODULES, "image_shards": "datasets.image_folder"}


@dataclass(frozen=True)
class Preprocessing:
    """Short side resized, centre cropped, gray where the network takes one channel; then training.pixels scales.

    Attributes:
        image_size: pixels per side of the crop.
        short_side: pixels of the short side before it.
        mean: per channel, of pixels scaled to [0, 1].
        std: the same for the standard deviation.
        max_pixels: images of more are refused.
    """

    image_size: int
    short_side: int
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    max_pixels: int

    @property
    def channels(self) -> int:
        """1 or 3."""
        return len(self.mean)

    def pixels(self, path: Path) -> torch.Tensor:
        """Return the image of a file.

        Shape: -> (C, image_size, image_size), uint8.

        Raises:
            DataError: it cannot be read.
        """
        try:
            content = read_bounded(path, MAX_BYTES)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
        image = CentreCrop(self.image_size, self.short_side)(EncodedImage(content, str(path), self.max_pixels))
        if self.channels == 3:
            return image
        gray = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).convert("L")
        return torch.frombuffer(bytearray(gray.tobytes()), dtype=torch.uint8).view(1, self.image_size, self.image_size)

    def as_dict(self) -> Dict[str, Any]:
        """For other programs, in the order in which it is done."""
        return {
            "color": "rgb" if self.channels == 3 else "gray",
            "resize_short_side": self.short_side,
            "interpolation": "bilinear, antialiased",
            "center_crop": self.image_size,
            "scale": 1 / 255,
            "mean": list(self.mean),
            "std": list(self.std),
            "layout": "NCHW",
        }

    def __str__(self) -> str:
        colour = "RGB" if self.channels == 3 else "gray"
        return (
            f"{colour}, short side to {self.short_side} pixels (bilinear, antialiased), centre {self.image_size} x "
            f"{self.image_size}, (x / 255 - mean) / std with mean {_rounded(self.mean)}, std {_rounded(self.std)}"
        )


def _rounded(values: Tuple[float, ...]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def preprocessing_of(config: DataConfig) -> Preprocessing:
    """Return that of the evaluation images of a data set, without its images; those of one size fill the crop."""
    module = importlib.import_module(_STATISTICS_IN[config.name])
    size = config.image_size or NATIVE_SIZES.get(config.name) or int(module.IMAGE_SIZE)
    is_cifar = config.name.startswith("cifar")
    mean, std = (module.MEANS[config.name], module.STDS[config.name]) if is_cifar else (module.MEAN, module.STD)
    short_side = round(size / EVALUATION_SHARE) if config.name in ANY_SIZE else size
    return Preprocessing(size, short_side, tuple(mean), tuple(std), pixel_limit(config))
