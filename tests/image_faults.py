"""Damaged JPEG files through the C++ of datasets/images, and through the other decoders.

    python tests/image_faults.py

It prints how many windows were given, and to how many the C++ left it to the others; the exit code is 1 where an answer
differs from theirs. With --sanitized the library is built with the sanitizers of addresses and undefined behaviour, as
`make fuzz-images` does: g++'s libasan.so must then be preloaded.
"""

from __future__ import annotations

import argparse
import random
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import List, Optional

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from damage import damaged  # noqa: E402
from made_images import encoded, smooth_photograph  # noqa: E402
from PIL import Image  # noqa: E402

from datasets.errors import DataError  # noqa: E402
from datasets.images.encoded_image import EncodedImage  # noqa: E402
from datasets.images.native import NativeImages, ResizedWindow, Window, build_library  # noqa: E402
from datasets.images.transforms import resize_with_libraries  # noqa: E402

WIDTH, HEIGHT = 160, 120
MAX_PIXELS = 1_000_000
SANITIZERS = ("-march=native", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
MOST_RESIZED = 150  # pixels of a side


def photograph(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Waves and noise: every block has high frequencies."""
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(smooth_photograph(width, height)) + noise, 0, 255).astype(np.uint8))


def files() -> List[bytes]:
    """JPEG files of each kind: those that the C++ decodes, and those that it leaves to others."""
    photo, exif = photograph(), Image.Exif()
    exif[0x0112] = 6
    made = [encoded(photo, "JPEG", subsampling=name) for name in (0, 1, 2, "4:1:1")]
    made += [encoded(photo, "JPEG", exif=exif), encoded(photo.convert("L"), "JPEG")]
    made += [encoded(photo, "JPEG", restart_marker_rows=1), encoded(photo, "JPEG", restart_marker_blocks=3)]
    made += [encoded(photo.convert("CMYK"), "JPEG"), encoded(photo, "JPEG", progressive=True)]
    made += [encoded(photo, "MPO", save_all=True, append_images=[photo.rotate(90)])]
    return [file.getvalue() for file in made]


def window_fault(native: NativeImages, content: bytes, chance: random.Random, seen: "Counter[str]") -> Optional[str]:
    """Return what is wrong with a random window of a file; None if nothing is."""
    try:
        image = EncodedImage(content, "made.jpg", MAX_PIXELS)
    except DataError:
        seen["no image by its header"] += 1
        return None
    shrink = chance.choice((1, 1, 2, 4, 8))
    height, width = -(-image.height // shrink), -(-image.width // shrink)
    top, left = chance.randrange(height), chance.randrange(width)
    window = Window(top, left, chance.randint(1, height - top), chance.randint(1, width - left))
    given = native.window(content, (image.height, image.width), shrink, window)
    if given is None:
        seen["left to the others"] += 1
        return None
    seen["given"] += 1
    try:
        expected = image.pixels(shrink)[top : top + window.height, left : left + window.width]
    except DataError as error:
        return f"{window} of 1 / {shrink} was given; the others say: {error}"
    return None if np.array_equal(given, expected) else f"{window} of 1 / {shrink} has other pixels"


def resize_fault(native: NativeImages, chance: random.Random) -> Optional[str]:
    """Return what is wrong with a resized window of random bytes, in memory that ends with the last pixel needed."""
    sides = [chance.randint(1, chance.choice((3, 20, MOST_RESIZED))) for _ in range(4)]
    height, width, new_height, new_width = sides
    mirror = chance.random() < 0.5
    pixels = np.random.default_rng(chance.randrange(1 << 30)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    top, left = chance.randrange(new_height), chance.randrange(new_width)
    window = Window(top, left, chance.randint(1, new_height - top), chance.randint(1, new_width - left))
    target = ResizedWindow((height, width), (new_height, new_width), window, mirror)
    place = target.source()
    part = pixels[place.top : place.top + place.height, place.left : place.left + place.width].copy()
    given = native.resize(part, (place.top, place.left), target)
    if given is None:
        return None if not native.resizes else f"{target} was not resized"
    expected = resize_with_libraries(torch.from_numpy(pixels).permute(2, 0, 1), new_height, new_width)
    expected = expected[:, top : top + window.height, left : left + window.width]
    return None if torch.equal(given, expected.flip(-1) if mirror else expected) else f"{target} has other pixels"


def faults(native: NativeImages, first: int, count: int) -> "Counter[str]":
    """Count what was seen.

    Raises:
        AssertionError: answers differ; the message has the seed.
    """
    made, seen = files(), Counter()  # type: List[bytes], Counter[str]
    for seed in range(first, first + count):
        chance = random.Random(seed)
        content = made[seed % len(made)]
        if seed // len(made) % 10:  # one in ten whole
            content = damaged(content, seed, made[seed * 7 % len(made)])
        fault = window_fault(native, content, chance, seen) or resize_fault(native, chance)
        if fault is not None:
            raise AssertionError(f"seed {seed}: {fault}")
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--sanitized", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow's, of damaged tags
    native = NativeImages(build_library(SANITIZERS if arguments.sanitized else None))
    try:
        seen = faults(native, arguments.first, arguments.count)
    except AssertionError as error:
        print(error)
        return 1
    print(", ".join(f"{name}: {number}" for name, number in sorted(seen.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
