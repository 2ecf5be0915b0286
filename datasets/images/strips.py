"""Large decoded images worked on strip by strip, so that no second or third copy of all their pixels is needed."""

from __future__ import annotations

from typing import Iterator, Tuple

import numpy as np
from PIL import Image

STRIP_PIXELS = 1 << 20


def on_white(image: Image.Image) -> Image.Image:
    """Return an image with transparent parts as RGB, composited on white."""
    out = Image.new("RGB", image.size)
    for top, strip in strips(image):
        layer = strip.convert("RGBA")
        out.paste(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"), (0, top))
    return out


def rgb_array(image: Image.Image) -> np.ndarray:
    """Return the pixels of an image with mode RGB, (H, W, 3), uint8, of its own memory."""
    out = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top, strip in strips(image):
        out[top : top + strip.height] = np.asarray(strip)
    return out


def strips(image: Image.Image) -> Iterator[Tuple[int, Image.Image]]:
    """Yield each strip with the row that it begins in."""
    rows = max(1, STRIP_PIXELS // max(1, image.width))
    if image.height <= rows:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))
