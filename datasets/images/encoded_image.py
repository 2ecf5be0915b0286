"""An image file in memory: its size is known from its header, its pixels are decoded once a crop has been chosen.

Three decoders give the same pixels: the C++ of native.py, where it has been built, for windows of plain JPEG files;
simplejpeg, where it is installed, for whole JPEG files in gray or colour; Pillow for everything else and for every JPEG
file that the others object to, so that Pillow alone decides what is damaged. All hold libjpeg-turbo; a test finds no
difference between them, shrunken or not. Of a file of several pictures all give the first, and shrink it alike.

A JPEG image can be decoded at a half, a quarter or an eighth of its size for less than its full cost, by leaving out
high frequencies of its 8 x 8 blocks. Resized to the same size, its pixels then differ from those of a full decode by
0.1 to 3 of 255 on average (ten photographs, quality 90, resized to 28 to 112 pixels): squares are averaged.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from io import BytesIO
from typing import Tuple

import numpy as np
import PIL

from datasets.errors import DataError
from datasets.images.decode import MAX_PIXELS, check_size, decode, read_header
from datasets.images.native import Window, native_images
from datasets.images.strips import rgb_array

try:
    import simplejpeg
except ImportError:  # no wheel for every machine; Pillow decodes all of it
    simplejpeg = None

SHRINKS = (8, 4, 2)
# The beginning of every JPEG file, and the colour spaces that both decoders turn into the same RGB.
JPEG_START = b"\xff\xd8\xff"
COLOUR_SPACES = ("Gray", "YCbCr", "RGB")


def decoder_versions() -> str:
    """Return what decodes here: other versions may round otherwise, and resuming compares it."""
    native = native_images()
    names = [native.window_decoder] if native is not None and native.window_decoder else []
    names += [] if simplejpeg is None else [f"simplejpeg {simplejpeg.__version__}"]
    return ", ".join([*names, f"Pillow {PIL.__version__}"])


@lru_cache(maxsize=None)
def say_decoder() -> None:
    """Say, once, that JPEG files are decoded by the slower decoders, where that is so.

    What can be built is built here, before there are loading processes.
    """
    native_images()
    if simplejpeg is None:
        logging.getLogger(__name__).warning(
            "simplejpeg is not installed: Pillow decodes JPEG files, more slowly, to the same pixels"
        )


class EncodedImage:
    """One encoded image.

    Args:
        content: the bytes of its file.
        name: of the image, for errors.
        max_pixels: more are refused.

    Raises:
        DataError: no image by its header, or one that would take too much memory; nothing is decoded.

    Attributes:
        height, width: in pixels, as stored.
    """

    def __init__(self, content: bytes, name: str, max_pixels: int = MAX_PIXELS) -> None:
        self.content = content
        self.max_pixels = max_pixels
        self.name = name
        try:
            self.width, self.height, self.format = self._read_header()
        except DataError as error:
            raise self._unusable(error) from error

    def _read_header(self) -> Tuple[int, int, str]:
        self.fast = False
        if simplejpeg is not None and self.content.startswith(JPEG_START):
            try:
                height, width, colour_space, _ = simplejpeg.decode_jpeg_header(self.content)
            except ValueError:
                return read_header(BytesIO(self.content), self.max_pixels)
            check_size(width, height, self.max_pixels)
            self.fast = colour_space in COLOUR_SPACES
            return width, height, "JPEG"
        return read_header(BytesIO(self.content), self.max_pixels)

    def largest_shrink(self, height: int, width: int, image_size: int) -> int:
        """Return the largest shrink after which a window of height x width still has image_size pixels per side."""
        if self.format != "JPEG":
            return 1
        return next((shrink for shrink in SHRINKS if min(height, width) >= shrink * image_size), 1)

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """Return the decoded image, (ceil(height / shrink), ceil(width / shrink), 3), uint8, RGB.

        Args:
            shrink: 1, or for JPEG files 2, 4 or 8.

        Raises:
            DataError: damaged, cut short, or of an unknown range of values; names the image.
        """
        shape = -(-self.height // shrink), -(-self.width // shrink), 3
        if self.fast:
            output = np.empty(shape, dtype=np.uint8)
            try:
                simplejpeg.decode_jpeg(self.content, min_height=shape[0], min_width=shape[1], buffer=output)
                return output
            except ValueError:
                pass  # simplejpeg refuses small irregularities that Pillow reads: let it decide
        try:
            return rgb_array(decode(BytesIO(self.content), shrink, self.max_pixels))
        except DataError as error:
            raise self._unusable(error) from error

    def window(self, window: Window, shrink: int = 1) -> np.ndarray:
        """Return the pixels of a window, (window.height, window.width, 3): those of pixels(shrink) in that place.

        Of a JPEG file no more is decoded than the window needs; damage below it is met only where it is an error.

        Args:
            window: in the image as the shrink makes it.
            shrink: 1, or for JPEG files 2, 4 or 8.

        Raises:
            DataError: as pixels.
        """
        native = native_images()
        if native is not None and self.format == "JPEG":
            found = native.window(self.content, (self.height, self.width), shrink, window)
            if found is not None:
                return found
        top, left, height, width = window
        return self.pixels(shrink)[top : top + height, left : left + width]

    def _unusable(self, reason: DataError) -> DataError:
        return unusable(self.name, str(reason))


def unusable(name: str, reason: str) -> DataError:
    """Return the error for one image that cannot be read."""
    return DataError(f"{name}: cannot be used: {reason}; replace or remove it")
