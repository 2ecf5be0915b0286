"""Compose scenes: a garment of Fashion-MNIST before a piece of a photograph, both in random colours.

With the garment's opacity A and texture T, resized and placed, its mean texture m = sum T / sum A, and per channel k

    ground_k = G_k + c * (P_k - mean(P_k))                   P: a window of a photograph, averaged to 32 x 32 pixels
    scene_k  = (1 - A) * ground_k + A * F_k + d * (T - m A)  clipped to [0, 255] and rounded

Random, and independent of the class, are the window (photograph, block, place, side, orientation, order of channels),
the colours G and F, the contrasts c and d (d of either sign), the garment's size and place: each number is uniform in
the range that its name has below. The brightnesses of G and F differ by LEAST_DIFFERENCE or more. So images differ in
mean and contrast, and neither says what they show.

A number is whole, or made by single operations on 64-bit floats, which give the same bits on every machine; products of
matrices and sums add whole numbers below 2^53, which is exact in any order.
"""

from __future__ import annotations

from typing import Dict, List, Tuple

import numpy as np

from datasets.keyed_random import KeyedRandoms
from datasets.photo_blocks import BLOCK, blocks

SIZE = 32
GARMENT = 28
SHRINKS = (1, 2, 3)  # a window has 32, 64 or 96 pixels per side
WINDOW_UNIT = 36  # keeps means of 1, 4 and 9 pixels whole numbers
GARMENT_SIDE = (16.0, 32.0)  # of the 28 x 28 pixels, in pixels of the scene
OPAQUE = 48  # a garment's pixel of this value or more hides the ground, a darker one in proportion
GROUND_BRIGHTNESS = (40.0, 215.0)
GARMENT_BRIGHTNESS = (20.0, 235.0)
LEAST_DIFFERENCE = 40.0
COLOUR = 40.0  # a channel's largest distance from the brightness
GROUND_CONTRAST = (0.0, 1.0)
GARMENT_CONTRAST = (0.2, 0.8)
CHANNEL_ORDERS = np.array([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
WEIGHT = 1024  # the unit of resizing weights
SCENES = 0x5CE9E5  # first word of the random keys
HALVES = {"train": 0, "val": 1}  # the second; the third is the image's index


def compose(garments: np.ndarray, photos: Dict[str, np.ndarray], half: str, first: int) -> np.ndarray:
    """Return scenes `first`, `first` + 1, ... of a half, a function of their numbers, garments and photographs.

    Args:
        garments: one for each scene.
        photos: by name; their order counts.
        half: "train" or "val".
        first: number of the first scene.

    Shape: garments (N, 28, 28) uint8, photos (H, W, 3) uint8 -> (N, 3, 32, 32) uint8.
    """
    random = KeyedRandoms((SCENES, HALVES[half]), np.arange(first, first + len(garments)))
    windows = choose_windows([photo.shape[:2] for photo in photos.values()], half, random)
    ground = cut_windows(list(photos.values()), windows)
    ground = recolour(ground, random)
    ground_brightness = between(GROUND_BRIGHTNESS, random)
    contrast = between(GROUND_CONTRAST, random)[:, None, None, None]
    level = colours(ground_brightness, random)
    ground = level + contrast / WINDOW_UNIT * (ground - ground.sum((2, 3), keepdims=True) / SIZE**2)
    opacity, texture = place_garments(garments, random)
    foreground = colours(distant_brightness(ground_brightness, random), random)
    strength = between(GARMENT_CONTRAST, random) * (1 - 2 * random.integer(2))
    mean = texture.sum((1, 2), keepdims=True) / np.maximum(opacity.sum((1, 2), keepdims=True), 1)
    detail = strength[:, None, None] * (texture - mean * opacity) / (OPAQUE * WEIGHT**2)
    share = (opacity / (OPAQUE * WEIGHT**2))[:, None]
    scenes = ground + share * (foreground - ground) + detail[:, None]
    return np.rint(np.clip(scenes, 0, 255)).astype(np.uint8)


def between(limits: Tuple[float, float], random: KeyedRandoms) -> np.ndarray:
    low, high = limits
    return low + (high - low) * random.uniform()


def choose_windows(sizes: List[Tuple[int, int]], half: str, random: KeyedRandoms) -> np.ndarray:
    """Return photograph, top, left and shrink of the window behind each scene. Shape (N, 4), int64.

    A photograph, then one of the half's blocks in it, then a side of the window, then its place in the block.
    """
    corners = [[(top, left) for of, top, left in blocks(*size) if of == half] for size in sizes]
    starts = np.cumsum([0] + [len(found) for found in corners])
    photo = random.integer(len(sizes))
    block = starts[photo] + random.integer((starts[1:] - starts[:-1])[photo])
    shrink = np.array(SHRINKS)[random.integer(len(SHRINKS))]
    corner = np.array([place for found in corners for place in found])[block]
    room = BLOCK - SIZE * shrink + 1
    return np.stack((photo, corner[:, 0] + random.integer(room), corner[:, 1] + random.integer(room), shrink), axis=1)


def cut_windows(photos: List[np.ndarray], windows: np.ndarray) -> np.ndarray:
    """Return the windows, each pixel WINDOW_UNIT times the mean of a square of shrink x shrink pixels.

    Shape: windows (N, 4) -> (N, 3, 32, 32) float64, whole numbers.
    """
    output = np.empty((len(windows), 3, SIZE, SIZE))
    for number, photo in enumerate(photos):
        for shrink in SHRINKS:
            chosen = np.flatnonzero((windows[:, 0] == number) & (windows[:, 3] == shrink))
            span = np.arange(SIZE * shrink)
            rows, columns = (windows[chosen, axis, None] + span for axis in (1, 2))
            pixels = photo[rows[:, :, None], columns[:, None, :]]
            squares = pixels.reshape(len(chosen), SIZE, shrink, SIZE, shrink, 3).astype(np.int64).sum((2, 4))
            output[chosen] = squares.transpose(0, 3, 1, 2) * (WINDOW_UNIT // shrink**2)
    return output


def recolour(ground: np.ndarray, random: KeyedRandoms) -> np.ndarray:
    """Turn and mirror each image in one of eight ways, and put its channels in one of six orders."""
    order = CHANNEL_ORDERS[random.integer(len(CHANNEL_ORDERS))]
    ground = np.take_along_axis(ground, order[:, :, None, None], axis=1)
    for change in (lambda image: image.swapaxes(2, 3), lambda image: image[:, :, ::-1], lambda image: image[..., ::-1]):
        ground = np.where((random.integer(2) == 1)[:, None, None, None], change(ground), ground)
    return ground


def colours(brightness: np.ndarray, random: KeyedRandoms) -> np.ndarray:
    """Return brightness + three numbers in [-COLOUR, COLOUR). Shape (N,) -> (N, 3, 1, 1)."""
    return np.stack([brightness + COLOUR * (2 * random.uniform() - 1) for _ in range(3)], axis=1)[:, :, None, None]


def distant_brightness(other: np.ndarray, random: KeyedRandoms) -> np.ndarray:
    """Return a number of GARMENT_BRIGHTNESS that differs from `other` by LEAST_DIFFERENCE or more, uniform there."""
    low, high = GARMENT_BRIGHTNESS
    below = np.maximum(other - LEAST_DIFFERENCE - low, 0)
    above = np.maximum(high - other - LEAST_DIFFERENCE, 0)
    place = random.uniform() * (below + above)
    return np.where(place < below, low + place, high - (below + above - place))


def place_garments(garments: np.ndarray, random: KeyedRandoms) -> Tuple[np.ndarray, np.ndarray]:
    """Return opacity and texture of each garment in its scene, whole numbers of unit 1 / (OPAQUE * WEIGHT^2).

    Shape: (N, 28, 28) -> twice (N, 32, 32) float64.
    """
    side = between(GARMENT_SIDE, random)
    vertical, horizontal = (resizing_weights(side, random.uniform() * (SIZE - side)) for _ in range(2))
    opacity = np.minimum(garments, OPAQUE).astype(np.float64)
    horizontal = horizontal.transpose(0, 2, 1)
    return vertical @ opacity @ horizontal, vertical @ (opacity * garments) @ horizontal


def resizing_weights(side: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the weights of a garment's 28 pixels in the 32 of a scene's line, bilinear with antialiasing.

    w[o, i] = round(WEIGHT * t(x_o - i) / sum_j t(x_o - j)) with the triangle t(x) = max(0, 1 - |x| / max(1, 28 / side))
    and x_o = (o + 1/2 - start) * 28 / side - 1/2; j runs over all whole numbers, so that borders fade out.

    Args:
        side: pixels that the 28 take in the scene.
        start: where the first begins.

    Shape: (N,) -> (N, 32, 28) float64.
    """
    scale = (GARMENT / side)[:, None]
    half_width = np.maximum(scale, 1)
    place = (np.arange(SIZE) + 0.5 - start[:, None]) * scale - 0.5
    fraction = place - np.floor(place)
    reach = np.arange(-1, 3)  # half widths are 1.75 at most
    total = np.maximum(1 - np.abs(fraction[:, :, None] - reach) / half_width[:, :, None], 0).sum(2)
    distance = np.abs(place[:, :, None] - np.arange(GARMENT))
    return np.rint(WEIGHT * np.maximum(1 - distance / half_width[:, :, None], 0) / total[:, :, None])
