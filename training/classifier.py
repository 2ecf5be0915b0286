"""A network with everything around it that a training or evaluation step computes: pixels in, sums out."""

from __future__ import annotations

from typing import Sequence, Tuple

import torch
from torch import Tensor, nn

from training.loss import IGNORED, cross_entropy_sum, true_class_values


class Classifier(nn.Module):
    """Scales pixels, runs the network and returns sums over images: (loss_sum, top1, top5, images).

    x = (pixels / 255 - mean) / std, logits = network(x). The sums go to training.metrics.StepSums, which divides once.

    The loss is smoothed in training mode only: evaluation reports the plain cross entropy, so that evaluation losses of
    runs with different label smoothing can be compared.

    Args:
        network: maps float images (N, C, H, W) to logits (N, K); kept as the attribute `network`, whose state dict
            holds nothing of this module.
        mean: per channel, on the scale where pixels are 0..1.
        std: per channel, on the same scale, positive.
        label_smoothing: see training.loss.cross_entropy_sum.

    Shape: images (N, C, H, W) uint8, labels (N,) integers, IGNORED = padding -> four scalars.
    dtype: pixels become the dtype of the buffers (float32, unless the module was cast); loss_sum as cross_entropy_sum
        gives it; counts are int64.
    Raises: ValueError for mean and std that do not fit each other or the images' channels.
    """

    pixel_mean: Tensor
    pixel_scale: Tensor

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], label_smoothing: float = 0.0
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} need one value per channel each")
        if min(std) <= 0:
            raise ValueError(f"std {tuple(std)} must be positive in every channel")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing {label_smoothing} must be at least 0 and below 1")
        self.network = network
        self.channels = len(mean)
        self.label_smoothing = label_smoothing
        # (pixels - 255 mean) x 1 / (255 std): two passes over the images instead of three. Not persistent: they come
        # from the data set, and a checkpoint holds what was learned.
        pixel_mean = torch.tensor([255.0 * value for value in mean]).view(1, -1, 1, 1)
        pixel_scale = torch.tensor([1.0 / (255.0 * value) for value in std]).view(1, -1, 1, 1)
        self.register_buffer("pixel_mean", pixel_mean, persistent=False)
        self.register_buffer("pixel_scale", pixel_scale, persistent=False)

    def forward(self, images: Tensor, labels: Tensor) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}, but must be uint8: scaling to floats happens here, once")
        # One channel would otherwise broadcast against three means and give three wrong channels. Not asked while
        # tracing, where a comparison of sizes is frozen into the trace.
        if not torch.jit.is_tracing() and images.shape[1] != self.channels:
            raise ValueError(f"images have {int(images.shape[1])} channels, but mean and std have {self.channels}")
        logits = self.network((images.to(self.pixel_mean.dtype) - self.pixel_mean) * self.pixel_scale)
        loss_sum = cross_entropy_sum(logits, labels, self.label_smoothing if self.training else 0.0)
        rank = true_class_rank(logits.detach(), labels)
        return loss_sum, (rank < 1).sum(), (rank < 5).sum(), (labels != IGNORED).sum()


def true_class_rank(logits: Tensor, labels: Tensor) -> Tensor:
    """Number of classes ranked before the true one: 0 is a top-1 hit, below 5 a top-5 hit.

    Of two equal logits the one of the smaller class index ranks first. So a tie is decided the same way on every
    device and without looking at the label: low-precision logits tie often, and counting every tie as right (or wrong)
    would bias accuracy. With at most 5 classes each image is a top-5 hit, as min(5, K) classes cover all.
    A row with a NaN, and padding, get the rank K + 5, which is never a hit.

    Comparisons and sums only, where torch.topk would sort: cheap, and traceable on every device.

    Shape: logits (N, K), labels (N,) -> (N,) int64.
    """
    num_classes = logits.shape[1]
    classes = torch.arange(num_classes, device=logits.device).unsqueeze(0)
    true_logits = true_class_values(logits, labels).unsqueeze(1)
    before = (logits > true_logits) | ((logits == true_logits) & (classes < labels.unsqueeze(1)))
    rank = before.long().sum(dim=1)
    is_ranked = (torch.isnan(logits).long().sum(dim=1) == 0) & (labels != IGNORED)
    return torch.where(is_ranked, rank, torch.full_like(rank, num_classes + 5))
