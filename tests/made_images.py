"""Image files that tests make for themselves."""

from io import BytesIO
from pathlib import Path
from typing import Any, Tuple

import numpy as np
from PIL import Image


def save_noise(path: Path, size: Tuple[int, int] = (40, 30), seed: int = 0, **options: Any) -> None:
    """Write an RGB image of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def write_image_folder(folder: Path) -> Path:
    """Write two classes, three images each to train on and two to evaluate on."""
    for half, count in (("train", 3), ("val", 2)):
        for class_number, class_name in enumerate(("ant", "bee")):
            for number in range(count):
                save_noise(folder / half / class_name / f"{number}.jpg", seed=10 * class_number + number)
    return folder


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> BytesIO:
    """Return the file of an image."""
    buffer = BytesIO()
    image.save(buffer, format, **options)
    buffer.seek(0)
    return buffer


def smooth_photograph(width: int, height: int) -> Image.Image:
    """Colour waves of a few dozen pixels, like the out-of-focus parts of a photograph."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = [128 + 100 * np.sin(rows / 17 + k) * np.cos(columns / (13 + k)) for k in range(3)]
    return Image.fromarray(np.stack(pixels, axis=-1).astype(np.uint8))
