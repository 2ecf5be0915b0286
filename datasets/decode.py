"""Open one image file as an RGB image.

| stored as                      | given as                                                                    |
|--------------------------------|-----------------------------------------------------------------------------|
| gray, 1 bit, palette           | the value in each of R, G, B; the palette's colours                         |
| CMYK, YCbCr                    | Pillow's conversion, which knows no colour profiles                         |
| alpha or a transparent colour  | composited on white                                                         |
| 16 bits, gray                  | round(value / 257): 0..65535 becomes 0..255                                 |
| 16 bits, colour                | floor(value / 256), Pillow's own reading                                    |
| 32 bits a sample               | refused: their range is not known                                           |
| animation                      | the first frame                                                             |
| EXIF orientation, ICC profile  | not applied: as stored, like the reference results for ImageNet             |
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import Image

from datasets.errors import DataError

# Formats of photographs. Others (PostScript among them) would hand the file to programs of their own.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# An RGB image of this many pixels takes 240 MB; the largest of ImageNet has 61 million.
MAX_PIXELS = 80_000_000
# Evaluation resizes the short side up to 256 pixels and more, so a thin strip would grow beyond all bounds.
MAX_ASPECT_RATIO = 100
# The largest value of a 16-bit sample over that of an 8-bit one: 65535 / 255.
SIXTEEN_TO_EIGHT = 257


def decode(file: BinaryIO) -> Image.Image:
    """Return the image in `file` with mode RGB.

    Raises:
        DataError: no image of FORMATS, more than MAX_PIXELS pixels or longer than MAX_ASPECT_RATIO times its width or
        height
            (judged by its header: nothing is decoded), damaged or cut short, or of 32 bits a sample.
    """
    # Decoders raise whatever a broken file leads them to (OSError, SyntaxError, ValueError, struct.error, ...).
    try:
        image = Image.open(file, formats=FORMATS)
        check_size(image)
        if image.format == "PNG":
            image.verify()  # reading alone passes over the check sums of pixel data; this ends the image
            file.seek(0)
            image = Image.open(file, formats=FORMATS)
        image.load()
        return to_rgb(image)
    except DataError:
        raise
    except Exception as error:
        raise DataError(str(error) or type(error).__name__) from error


def check_size(image: Image.Image) -> None:
    """Raise DataError for an image that would take too much memory, by its header alone."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise DataError(f"its header says {width} x {height} = {width * height} pixels, over the limit of {MAX_PIXELS}")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise DataError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other")


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image with mode RGB, by the table above."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return sixteen_bit_gray(image)
    if image.mode in ("I", "F"):
        raise DataError(
            f"its samples have 32 bits (mode {image.mode}); their range is not known: convert it to 8 or 16 bits"
        )
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def sixteen_bit_gray(image: Image.Image) -> Image.Image:
    """Return 16-bit gray samples scaled to 8 bits; the transparent value, where there is one, as white."""
    samples = np.asarray(image).astype(np.uint32)
    scaled = (samples + SIXTEEN_TO_EIGHT // 2) // SIXTEEN_TO_EIGHT
    if "transparency" in image.info:
        scaled[samples == image.info["transparency"]] = 255
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
