"""Images for networks that are analysed, not trained: synthetic ones with a natural spectrum, and photograph patches.

All are centred and scaled per colour channel over the whole set: Proxy Normalization does not remove a mean that is in
the data, and the decomposition would show the data's mean in place of the network's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable, List, Union

import numpy as np
import torch
from torch import Tensor

CONTRAST_SPREAD = 0.4  # of the logarithm of an image's contrast
BRIGHTNESS_STD = 0.55  # of an image's mean, over the standard deviation of its texture
LUMINANCE_SHARE = 0.9  # of a texture's standard deviation that all colour channels have in common
_PHOTO_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


def one_over_f_images(count: int, size: int, seed: int, channels: int = 3) -> Tensor:
    """Return images whose amplitude falls as 1 / frequency, like that of natural images.

    Each is contrast * texture + brightness: the texture has random phases and is mostly common to the colour channels,
    and per image ln contrast ~ N(0, 0.4^2), brightness ~ N(0, 0.55^2).

    Args:
        count: images.
        size: pixels per side.
        seed: equal seeds give equal images.
        channels: of each image.

    Shape: (count, channels, size, size) float32, mean 0 and standard deviation 1 per channel over the set.
    """
    random = np.random.default_rng([seed, size, channels])
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None, :])
    frequency[0, 0] = np.inf  # no mean: that is the brightness

    def textures(channels: int) -> np.ndarray:
        noise = np.fft.fft2(random.standard_normal((count, channels, size, size)))
        texture = np.fft.ifft2(noise / frequency).real
        return texture / texture.std(axis=(1, 2, 3), keepdims=True)

    colour_share = (1.0 - LUMINANCE_SHARE**2) ** 0.5
    texture = LUMINANCE_SHARE * textures(1) + colour_share * textures(channels)
    contrast = np.exp(CONTRAST_SPREAD * random.standard_normal((count, 1, 1, 1)))
    brightness = BRIGHTNESS_STD * random.standard_normal((count, 1, 1, 1))
    return standardized(torch.from_numpy(contrast * texture + brightness))


def photo_patches(
    path: Union[str, Path], count: int, size: int, seed: int, read: Callable[[Path], np.ndarray]
) -> Tensor:
    """Return square patches from random places of a photograph, or of the photographs of a folder in turn.

    Args:
        path: of the photograph, or of the folder.
        count: patches.
        size: pixels per side.
        seed: equal seeds give equal patches.
        read: the pixels of a file, (H, W, 3) uint8.

    Shape: (count, 3, size, size) float32, mean 0 and standard deviation 1 per channel over the set.

    Raises:
        ValueError: there is no photograph, or one is smaller than a patch.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(p for p in path.glob("*") if p.suffix.lower() in _PHOTO_EXTENSIONS)
    if not files:
        raise ValueError(f"{path} is not a photograph and contains none ({', '.join(_PHOTO_EXTENSIONS)})")
    random = np.random.default_rng([seed, size])
    patches: List[Tensor] = []
    photos = [torch.from_numpy(read(file)).permute(2, 0, 1) for file in files[:count]]
    for index in range(count):
        photo = photos[index % len(photos)]
        if min(photo.shape[1:]) < size:
            raise ValueError(f"{files[index % len(photos)]} is smaller than patches of {size} x {size}; lower the size")
        top, left = (int(random.integers(0, side - size + 1)) for side in photo.shape[1:])
        patches.append(photo[:, top : top + size, left : left + size])
    return standardized(torch.stack(patches))


def standardized(images: Tensor) -> Tensor:
    """(images - mean) / std per channel over all images and positions, as float32.

    Raises:
        ValueError: a channel that is constant over the whole set.
    """
    images = images.double()
    std, mean = torch.std_mean(images, dim=(0, 2, 3), unbiased=False, keepdim=True)
    if not bool((std > 0).all()):
        raise ValueError(
            "a colour channel has the same value everywhere in these images; nothing can be measured on them"
        )
    return ((images - mean) / std).float()
