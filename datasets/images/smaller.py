"""Images stored smaller than they came, as many who train on ImageNet do: less to read, and less to decode."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Optional

import torch
from PIL import Image

from datasets.images.encoded_image import EncodedImage
from datasets.images.transforms import resize


@dataclass(frozen=True)
class Smaller:
    """How images are stored smaller.

    Attributes:
        short_side: in pixels, of images that have more.
        quality: of the JPEG files, 1 to 100; Pillow's, with chroma halved both ways.
    """

    short_side: int
    quality: int

    def __str__(self) -> str:
        return f"short side {self.short_side} at most, JPEG quality {self.quality}"

    def encoded(self, image: EncodedImage) -> Optional[bytes]:
        """Return the smaller JPEG file; None for an image that is small enough, which is kept as it is.

        Raises:
            DataError: the image is damaged; names it.
        """
        shortest = min(image.height, image.width)
        if shortest <= self.short_side:
            return None
        height, width = (self.short_side * side // shortest for side in (image.height, image.width))
        pixels = resize(torch.from_numpy(image.pixels()).permute(2, 0, 1), height, width)
        file = BytesIO()
        stored = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        stored.save(file, "JPEG", quality=self.quality, subsampling="4:2:0")
        return file.getvalue()
