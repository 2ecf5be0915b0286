"""A network with everything around it that a training or evaluation step computes: pixels in, sums out."""

from __future__ import annotations

from typing import Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from training.draws import StepDraws
from training.loss import IGNORED, cross_entropy_sum, true_class_values
from training.mixing import mix_images, mix_labels
from training.pixels import pixel_scaling, scaled_pixels


class Classifier(nn.Module):
    """Scales pixels, runs the network and returns sums over images: (loss_sum, top1, top5, images).

    x = (pixels / 255 - mean) / std, logits = network(x). The sums go to training.metrics.StepSums, which divides once.

    The loss is smoothed in training mode only: evaluation reports the plain cross entropy, so that evaluation losses of
    runs with different label smoothing can be compared.

    In training mode it is also given what is random in this step, where anything is (training.draws): it mixes the
    images and hands the network's drop layers their factors. top1 and top5 then count each image's own label.

    Args:
        network: maps float images (N, C, H, W) to logits (N, K); kept as the attribute `network`, whose state dict
            holds nothing of this module.
        mean: per channel, on the scale where pixels are 0..1.
        std: per channel, on the same scale, positive.
        label_smoothing: see training.loss.cross_entropy_sum.
        draws: what is drawn for each image in training; nothing by default.
        frozen: parts of the network that stay in evaluation mode (training.freezing).

    Shape: images (N, C, H, W) uint8, labels (N,) integers, IGNORED = padding -> four scalars. In training, with
        draws: images (partners + N, ...), labels (partners + N,), drawn (N, columns).
    dtype: pixels become the dtype of the buffers (float32, unless the module was cast); loss_sum as cross_entropy_sum
        gives it; counts are int64.

    Raises:
        ValueError: mean and std that do not fit each other or the images' channels; in training, for drawn numbers that
            are missing or not needed.
    """

    pixel_mean: Tensor
    pixel_scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        label_smoothing: float = 0.0,
        draws: StepDraws = StepDraws(),  # noqa: B008  immutable
        frozen: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing {label_smoothing} must be at least 0 and below 1")
        self.network = network
        self.channels = len(mean)
        self.label_smoothing = label_smoothing
        self.draws = draws
        self._frozen = tuple(frozen)  # a tuple is not registered: the modules are the network's
        # Not persistent: they come from the data set, and a checkpoint holds what was learned.
        pixel_mean, pixel_scale = pixel_scaling(mean, std)
        self.register_buffer("pixel_mean", pixel_mean, persistent=False)
        self.register_buffer("pixel_scale", pixel_scale, persistent=False)

    def train(self, mode: bool = True) -> Classifier:
        """Training mode for all but the frozen parts."""
        super().train(mode)
        for module in self._frozen:
            module.train(False)
        return self

    def forward(
        self, images: Tensor, labels: Tensor, drawn: Optional[Tensor] = None
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}, but must be uint8: scaling to floats happens here, once")
        # One channel would otherwise broadcast against three means and give three wrong channels. Not asked while
        # tracing, where a comparison of sizes is frozen into the trace.
        if not torch.jit.is_tracing() and images.shape[1] != self.channels:
            raise ValueError(f"images have {int(images.shape[1])} channels, but mean and std have {self.channels}")
        x = self.scaled(images)
        if not self.training:
            return self._sums(x, labels, 0.0)
        if (drawn is None) != (self.draws.columns == 0):
            raise ValueError(
                f"a training step of this classifier takes {self.draws.columns} drawn numbers for each image, got "
                f"{'none' if drawn is None else tuple(drawn.shape)}; pass classifier.draws.rows(...), or nothing for 0"
            )
        with self.draws.handed_over(drawn):
            return self._mixed_sums(x, labels, drawn)

    def scaled(self, images: Tensor) -> Tensor:
        """Return what the network is given: (pixels / 255 - mean) / std.

        Shape: (N, C, H, W) -> same.
        """
        return scaled_pixels(images, self.pixel_mean, self.pixel_scale)

    def _mixed_sums(self, x: Tensor, labels: Tensor, drawn: Optional[Tensor]) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        if drawn is None or self.draws.mixing is None:
            return self._sums(x, labels, self.label_smoothing)
        mixing = drawn[:, : self.draws.mixing_columns]
        targets = mix_labels(labels, mixing, x.shape[2], x.shape[3])
        return self._sums(mix_images(x, mixing), labels[self.draws.partners :], self.label_smoothing, targets)

    def _sums(
        self, x: Tensor, labels: Tensor, label_smoothing: float, targets: Optional[Tuple[Tensor, Tensor]] = None
    ) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = self.network(x)
        loss_labels, weights = (labels, None) if targets is None else targets
        loss_sum = cross_entropy_sum(logits, loss_labels, label_smoothing, weights)
        rank = true_class_rank(logits.detach(), labels)
        return loss_sum, (rank < 1).sum(), (rank < 5).sum(), (labels != IGNORED).sum()


def true_class_rank(logits: Tensor, labels: Tensor) -> Tensor:
    """Return number of classes ranked before the true one: 0 is a top-1 hit, below 5 a top-5 hit.

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
    is_unranked = (torch.isnan(logits).long().sum(dim=1) > 0) | (labels == IGNORED)
    return rank.masked_fill(is_unranked, num_classes + 5)
