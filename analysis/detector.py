"""The paper's example of what a norm may make impossible: a detector, just before the nonlinearity of one channel.

An image has a pattern at one position, or nowhere. A detector's map is 1 at that position and 0 elsewhere, so its mean
and standard deviation over an image are 0 where the pattern is absent and above 0 where it is present. Instance norm
fixes both to beta and gamma in every image, so no weights express it; norms that preserve expressivity can be fitted.

Source: Labatie et al. 2021, section 4, the discussion of Theorem 2.
"""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor, nn

from analysis.norm_name import parse_norm
from normact import NormActFactory

_SIZE, _IMAGES, _WIDTH = 8, 64, 16
_NOISE = 0.3
# As good as none: with the usual 1e-5 instance norm is fitted after all, by values so small that eps divides them.
_EPS = 1e-12
_STEPS, _LEARNING_RATE = 2000, 0.02
_PATTERN = ((1.0, -1.0, 1.0), (-1.0, 1.0, -1.0), (1.0, -1.0, 1.0))


def detector_residual(norm: str, seed: int) -> float:
    """Return how much of a detector's map a small net with this norm leaves unexplained after it was fitted to it.

    Formula: mean((y - t)^2) / var(t), t the detector's map and y the output of conv -> norm -> ReLU (-> PN) -> conv ->
    norm -> affine in one channel, all over the images that it was fitted to: whether it can be expressed is the
    question, not whether it generalizes. Batch norm sees all images at once.

    Args:
        norm: a short name, see analysis.norm_name.
        seed: of images and weights.
    """
    images, maps = detector_images(seed)
    factory = NormActFactory(**parse_norm(norm), eps=_EPS)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = nn.Sequential(
            _conv(1, _WIDTH), factory(_WIDTH, "relu"), _conv(_WIDTH, _WIDTH), factory(_WIDTH, None, bias=True)
        ).train()
        optimizer = torch.optim.Adam(net.parameters(), lr=_LEARNING_RATE)
        for step in range(_STEPS):
            for group in optimizer.param_groups:
                group["lr"] = _LEARNING_RATE * (1 - step / _STEPS)
            optimizer.zero_grad()
            (net(images)[:, :1] - maps).square().mean().backward()
            optimizer.step()
    with torch.no_grad():
        error = (net(images)[:, :1] - maps).square().mean()
    return float(error / maps.var(unbiased=False))


def detector_images(seed: int) -> Tuple[Tensor, Tensor]:
    """Noise, (64, 1, 8, 8), with the pattern in every second image, and the maps that tell where."""
    generator = torch.Generator().manual_seed(seed)
    images = _NOISE * torch.randn(_IMAGES, 1, _SIZE, _SIZE, generator=generator)
    maps = torch.zeros_like(images)
    pattern = torch.zeros(_SIZE, _SIZE)
    pattern[:3, :3] = torch.tensor(_PATTERN)
    for index in range(0, _IMAGES, 2):
        row, column = torch.randint(_SIZE, (2,), generator=generator).tolist()
        images[index, 0] += torch.roll(pattern, (row - 1, column - 1), (0, 1))
        maps[index, 0, row, column] = 1.0
    return images, maps


def _conv(channels_in: int, channels_out: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, padding_mode="circular", bias=False)
