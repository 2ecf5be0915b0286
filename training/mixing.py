"""Mixup and CutMix: what is drawn for each image of a global batch, and how images and labels are mixed with it.

    mixed   = c x_i + (1 - c) x_(i-1)                 mixup; the partner is the image before
    out     = mixed outside the box, x_(i-2) inside   CutMix; the partner is the second image before
    weights = (1 - a) c of label i, (1 - a)(1 - c) of label i-1, a of label i-2;   a = box area / image area

i counts the images of the *global* batch, in a circle. A part of it (of a process, of a micro-batch) is therefore
given the PARTNERS images before its first one as well, and every way of cutting up a global batch mixes the same
images. Coefficients are drawn on the host, in float64, for each image of its own; devices only multiply and compare.

Source: Zhang et al., "mixup", 2018; Yun et al., "CutMix", 2019.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from configs.schema.learning import RegularizationConfig

PARTNERS = 2  # images before its first that a part of a global batch needs
COLUMNS = 5  # c, then the box: top, bottom, left, right, in pixels; bottom and right are outside


@dataclass(frozen=True)
class Mixing:
    """How mixing coefficients are drawn. Built by `Mixing.of`.

    Attributes:
        mixup_alpha: c = max(m, 1 - m), m ~ Beta(alpha, alpha); None for no mixup.
        cutmix_nominal: the rule of the paper's authors, see `_authors_share`; None for another or no CutMix.
        cutmix_alpha: the plain rule, share ~ Beta(alpha, alpha), see `_plain_boxes`; None for another or no CutMix.
        cutmix_probability: the plain rule: share of the images that get a box.
        image_size: pixels per side.
    """

    mixup_alpha: Optional[float]
    cutmix_nominal: Optional[float]
    cutmix_alpha: Optional[float]
    cutmix_probability: float
    image_size: int

    @classmethod
    def of(cls, config: RegularizationConfig, image_size: int) -> Optional[Mixing]:
        """Return the mixing that a configuration asks for; None for none."""
        if not config.is_mixing:
            return None
        probability = 1.0 if config.cutmix_probability is None else config.cutmix_probability
        return cls(config.mixup_alpha, config.cutmix_nominal, config.cutmix_alpha, probability, image_size)

    def draw(self, random: np.random.Generator, images: int) -> np.ndarray:
        """Return one row of COLUMNS numbers for each image, float64."""
        drawn = np.zeros((images, COLUMNS))
        drawn[:, 0] = 1.0
        if self.mixup_alpha is not None:
            m = random.beta(self.mixup_alpha, self.mixup_alpha, images)
            drawn[:, 0] = np.maximum(m, 1.0 - m)
        if self.cutmix_nominal is not None:
            drawn[:, 1:] = self._inner_boxes(random, _authors_share(random, self.cutmix_nominal, images))
        elif self.cutmix_alpha is not None:
            drawn[:, 1:] = self._plain_boxes(random, images)
        return drawn

    def _inner_boxes(self, random: np.random.Generator, kept: np.ndarray) -> np.ndarray:
        """Return square boxes of area 1 - kept (rounded to pixels), wholly inside the image, their place uniform."""
        side = np.rint(self.image_size * np.sqrt(1.0 - kept))
        top, left = (np.floor(random.random(len(kept)) * (self.image_size - side + 1)) for _ in range(2))
        return np.stack([top, top + side, left, left + side], axis=1)

    def _plain_boxes(self, random: np.random.Generator, images: int) -> np.ndarray:
        """Return square boxes of area 1 - share around a uniform centre; what reaches outside is cut off.

        Source: Yun et al. 2019, section 3 and its published settings.
        """
        assert self.cutmix_alpha is not None
        share = random.beta(self.cutmix_alpha, self.cutmix_alpha, images)
        share[random.random(images) >= self.cutmix_probability] = 1.0
        half = np.floor(self.image_size * np.sqrt(1.0 - share)) / 2
        edges = []
        for _ in range(2):
            centre = np.floor(random.random(images) * self.image_size)
            edges += [np.floor(centre - half), np.floor(centre + half)]
        return np.clip(np.stack(edges, axis=1), 0, self.image_size)


def _authors_share(random: np.random.Generator, nominal: float, images: int) -> np.ndarray:
    """Return each image's share that stays: 1 with probability 1.55 nominal - .96, else 1 + ln(u) / 4, u ~ U(e^-4, 1).

    The second form has the mean .769. Source: the settings of the paper's authors.
    """
    u = math.exp(-4.0) + (1.0 - math.exp(-4.0)) * random.random(images)
    return np.where(random.random(images) < 1.55 * nominal - 0.96, 1.0, 1.0 + np.log(u) / 4.0)


def mix_images(x: Tensor, drawn: Tensor) -> Tensor:
    """Return the mixed images of a part of a global batch.

    Args:
        x: the part, with the PARTNERS images before it in front.
        drawn: the rows of the part's own images.

    Shape: (PARTNERS + N, C, H, W), (N, COLUMNS) -> (N, C, H, W).
    dtype: that of x; boxes are compared in the type of drawn.
    """
    c, top, bottom, left, right = (drawn[:, column].view(-1, 1, 1, 1) for column in range(COLUMNS))
    rows = torch.arange(x.shape[2], device=x.device, dtype=drawn.dtype).view(1, 1, -1, 1)
    columns = torch.arange(x.shape[3], device=x.device, dtype=drawn.dtype).view(1, 1, 1, -1)
    is_inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    c = c.to(x.dtype)
    mixed = c * x[PARTNERS:] + (1 - c) * x[PARTNERS - 1 : -1]
    return torch.where(is_inside, x[:-PARTNERS], mixed)


def mix_labels(labels: Tensor, drawn: Tensor, height: int, width: int) -> Tuple[Tensor, Tensor]:
    """Return the three labels of each mixed image and their weights, which add up to 1.

    Args:
        labels: of the part, with those of the PARTNERS images before it in front.
        drawn: the rows of the part's own images.
        height: of an image.
        width: of an image.

    Shape: (PARTNERS + N,), (N, COLUMNS) -> (N, 3), (N, 3); the first label is the image's own.
    """
    c, top, bottom, left, right = (drawn[:, column] for column in range(COLUMNS))
    area = (bottom - top) * (right - left) / (height * width)
    weights = torch.stack([(1 - area) * c, (1 - area) * (1 - c), area], dim=1)
    return torch.stack([labels[PARTNERS:], labels[PARTNERS - 1 : -1], labels[:-PARTNERS]], dim=1), weights
