"""Image files of every format, damaged: they are read, or are an error of the data; nothing else happens."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from typing import Tuple

import numpy as np
import pytest
from damage import damaged, with_right_sums
from made_images import encoded, smooth_photograph
from PIL import Image

from datasets.errors import DataError
from datasets.images.decode import FORMATS
from datasets.images.encoded_image import SHRINKS, EncodedImage

MAX_PIXELS = 1_000_000  # a header that claims more is refused; the time of one that claims less is that of its pixels
QUICK, ALL = 600, 6000
# Each was an error of another kind, or pixels of another shape.
KEPT: Tuple[int, ...] = ()


@lru_cache(maxsize=None)
def files() -> Tuple[bytes, ...]:
    """Small files of every format and of the modes that have code of their own."""
    photograph = smooth_photograph(40, 24)
    deep = Image.fromarray((np.arange(40 * 24, dtype=np.uint16) * 60).reshape(24, 40))
    made = [encoded(photograph, name) for name in FORMATS if name != "AVIF"]
    made += [
        encoded(photograph, "JPEG", progressive=True, restart_marker_rows=1),
        encoded(photograph.convert("L"), "JPEG"),
    ]
    made += [
        encoded(photograph.convert("CMYK"), "JPEG"),
        encoded(photograph, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
    ]
    made += [encoded(deep, "PNG"), encoded(deep, "TIFF"), encoded(deep, "PPM")]
    made += [encoded(photograph.convert(mode), "PNG") for mode in ("L", "LA", "P", "RGBA", "1")]
    made += [encoded(photograph.convert("P"), "PNG", transparency=3), encoded(photograph.convert("P"), "BMP")]
    made += [
        encoded(photograph, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    ]
    made += [
        encoded(photograph, "TIFF", tiffinfo={322: 16, 323: 16}),
        encoded(photograph.convert("1"), "TIFF", compression="group4"),
    ]
    made += [encoded(photograph.convert("RGBA"), "WEBP", lossless=True)]
    for name in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        made.append(encoded(photograph, name, save_all=True, append_images=[photograph.rotate(180)]))
    return tuple(file.getvalue() for file in made)


def damaged_image(seed: int) -> bytes:
    content = files()[seed % len(files())]
    other = files()[seed * 7 % len(files())]
    changed = damaged(content, seed, other)
    return with_right_sums(changed) if content.startswith(b"\x89PNG") and seed % 3 else changed


def read(content: bytes) -> bool:
    """Whether the image could be read; as a data set reads it, at each scale."""
    try:
        image = EncodedImage(content, "ant/1.img", MAX_PIXELS)
        for shrink in (1, *(SHRINKS if image.format == "JPEG" else ())):
            pixels = image.pixels(shrink)
            assert pixels.shape == (-(-image.height // shrink), -(-image.width // shrink), 3)
            assert pixels.dtype == np.uint8
    except DataError as error:
        assert str(error).startswith("ant/1.img: cannot be used: ") and "object at" not in str(error)
        return False
    return True


def test_what_is_damaged_here_could_be_read_before() -> None:
    for content in files():
        assert read(content) and Image.open(BytesIO(content)).size == (40, 24)


@pytest.mark.parametrize(
    "seeds",
    [range(QUICK), pytest.param(range(QUICK, ALL), marks=pytest.mark.slow), KEPT],
    ids=["quick", "all", "kept"],
)
def test_a_damaged_image_is_read_or_an_error_of_the_data(seeds: "range | Tuple[int, ...]") -> None:
    readable = 0
    for seed in seeds:
        try:
            readable += read(damaged_image(seed))
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    if len(seeds) >= QUICK:  # neither all nor none: the damage is neither nothing nor everything
        assert len(seeds) / 20 < readable < len(seeds) / 2
