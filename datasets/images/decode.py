"""Decode one image file to RGB with Pillow, which has the last word on every file.

| stored as                      | given as                                                                    |
|--------------------------------|-----------------------------------------------------------------------------|
| gray, 1 bit, palette           | the value in each of R, G, B; the palette's colours                         |
| gray, TIFF with white as 0     | inverted, whatever its bits                                                 |
| CMYK, YCbCr                    | Pillow's conversion, which knows no colour profiles; a CMYK JPEG holds inks |
|                                | inverted, as Adobe's programs write it, whether it says so or not           |
| alpha or a transparent colour  | composited on white                                                         |
| 16 or 12 bits, gray            | round(255 value / largest): 0..65535 and 0..4095 become 0..255              |
| 16 bits, colour                | floor(value / 256), Pillow's own reading                                    |
| 32 bits, floats, signed        | refused: their range is not known                                           |
| animation, several pictures    | the first                                                                   |
| EXIF orientation, ICC profile  | not applied: as stored, like the reference results for ImageNet             |
"""

from __future__ import annotations

from typing import BinaryIO, Tuple

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from configs.schema import DataConfig
from datasets.errors import DataError
from datasets.images.strips import on_white, strips

# Formats of photographs. Others (PostScript among them) would hand the file to programs of their own.
# AVIF needs Pillow 11.3.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP") + (
    ("AVIF",) if "avif" in features.modules and features.check_module("avif") else ()
)
EXTENSIONS = (
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
# How files of these formats begin, to tell one of a kind that is not read from one of another format.
STARTS = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"RIFF": "WEBP",
    b"BM": "BMP", b"P5": "PPM", b"P6": "PPM",
}  # fmt: skip
# Decoding an image of this many pixels takes up to 650 MB; the largest of ImageNet has 61 million. data.max_megapixels
# is another limit.
MAX_PIXELS = 80_000_000
# No image of MAX_PIXELS needs a larger file: 4 samples of 16 bits a pixel, uncompressed.
MAX_BYTES = 8 * MAX_PIXELS
# Evaluation resizes the short side up to 256 pixels and more, so a thin strip would grow beyond all bounds.
MAX_ASPECT_RATIO = 100
# Tags of TIFF files.
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262
WHITE_IS_ZERO = 0


def pixel_limit(config: DataConfig) -> int:
    """Return how many pixels an image may have: data.max_megapixels, or else MAX_PIXELS."""
    return MAX_PIXELS if config.max_megapixels is None else 1_000_000 * config.max_megapixels


def decode(file: BinaryIO, shrink: int = 1, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return the image in `file` with mode RGB.

    Args:
        file: the encoded image.
        shrink: 1, 2, 4 or 8; the sides of a JPEG image become ceil(side / shrink). Others keep their size.
        max_pixels: more are refused.

    Raises:
        DataError: no image of FORMATS, more than MAX_PIXELS pixels or longer than MAX_ASPECT_RATIO times its width or
            height (judged by its header: nothing is decoded), damaged or cut short, or of 32 bits a sample.
    """
    # Decoders raise whatever a broken file leads them to (OSError, SyntaxError, ValueError, struct.error, ...).
    try:
        image = _opened(file, max_pixels)
        check_size(*image.size, max_pixels)
        if image.format == "PNG":
            image.verify()  # reading alone passes over the check sums of pixel data; this ends the image
            file.seek(0)
            image = _opened(file, max_pixels)
        if shrink > 1:
            image.draft(None, (image.width // shrink, image.height // shrink))
        image.load()
        return to_rgb(image)
    except DataError:
        raise
    except Exception as error:
        raise DataError(reason(error, file)) from error


def read_header(file: BinaryIO, max_pixels: int = MAX_PIXELS) -> Tuple[int, int, str]:
    """Return width, height and format ("JPEG", ...) of the image in `file`, of which nothing is decoded.

    Raises:
        DataError: no image of FORMATS, or one of too many pixels or too long.
    """
    try:
        image = _opened(file, max_pixels)
    except Exception as error:
        raise DataError(reason(error, file)) from error
    check_size(*image.size, max_pixels)
    # Pillow calls a JPEG file of several pictures MPO; of all others the format decides how large it is decoded
    return image.width, image.height, "JPEG" if image.format == "MPO" else image.format or ""


def reason(error: Exception, file: BinaryIO) -> str:
    """Return what is wrong with a file. Pillow's words for one that it does not know name an object of the program."""
    if not isinstance(error, UnidentifiedImageError):
        return str(error) or type(error).__name__
    file.seek(0)
    start = file.read(12)
    if not start:
        return "it is empty"
    if start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis") and "AVIF" not in FORMATS:
        return "it is an AVIF file, which needs Pillow 11.3 or newer, built with it"
    known = [name for begin, name in STARTS.items() if start.startswith(begin)]
    if known:
        return (
            f"it begins like a {known[0]} file, but is damaged or of a kind (bits, compression) that is not supported"
        )
    return f"no image of {', '.join(FORMATS)}: it begins with {start!r}"


def _opened(file: BinaryIO, max_pixels: int) -> Image.Image:
    # Pillow warns of images beyond a limit of its own, and refuses those of twice as many pixels; check_size is
    # stricter unless a user wants more.
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels
    return Image.open(file, formats=FORMATS)


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raise DataError for an image that would take too much memory, by the size that its header says."""
    if width * height > max_pixels:
        raise DataError(
            f"its header says {width} x {height} = {width * height} pixels, over the limit of {max_pixels}; "
            "data.max_megapixels is another"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise DataError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other")


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a decoded image with mode RGB, by the table above."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return deep_gray(image)
    if image.mode in ("I", "F"):
        raise DataError(
            f"its samples have 32 bits, signs or fractions (mode {image.mode}); their range is not known: convert it "
            "to 8 or 16 bits"
        )
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        return on_white(image)
    return image.convert("RGB")


def deep_gray(image: Image.Image) -> Image.Image:
    """Return gray samples of 12 or 16 bits scaled to 8; the transparent value, where there is one, as white."""
    tags = getattr(image, "tag_v2", {})  # of TIFF files alone
    largest = 2 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1
    out = Image.new("L", image.size)
    for top, strip in strips(image):
        samples = np.asarray(strip).astype(np.uint32)
        scaled = (samples * 255 + largest // 2) // largest
        if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # which Pillow heeds up to 8 bits
            scaled = 255 - scaled
        if "transparency" in image.info:
            scaled[samples == image.info["transparency"]] = 255
        out.paste(Image.fromarray(scaled.astype(np.uint8)), (0, top))
    return out.convert("RGB")
