"""What logits say about images with known labels, beyond a loss: accuracy by class, confusion, calibration."""

from __future__ import annotations

from typing import Any, Dict, Sequence

import torch
from torch import Tensor

from training.classifier import true_class_rank
from training.loss import cross_entropy_sum

BINS = 15  # of confidence, of equal width


class Evaluation:
    """Counts over images, added up batch by batch in float64 or whole numbers.

    top1, top5   share of images whose true class is among the first 1 or 5 (ties: training.classifier.true_class_rank)
    loss         mean cross entropy, without label smoothing
    ece          sum over bins b of (n_b / n) |accuracy_b - mean confidence_b|, confidence the largest probability,
                 bins (0, 1/15], (1/15, 2/15], ...
    confusion    images of class i (row) that were taken for class j (column)

    Args:
        num_classes: K.

    Source: the calibration error: Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3.
    """

    def __init__(self, num_classes: int) -> None:
        self.images = 0
        self.hits = torch.zeros(2, dtype=torch.long)
        self.loss_sum = 0.0
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.long)
        self.bins = torch.zeros(BINS, 3, dtype=torch.float64)  # images, hits, sum of confidences

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count one batch.

        Shape: (N, K), (N,) on the CPU.

        Raises:
            ValueError: another number of classes; outputs that are not finite.
        """
        num_classes = len(self.confusion)
        if logits.dim() != 2 or logits.shape[1] != num_classes:
            raise ValueError(f"the outputs are {tuple(logits.shape)}, and the images have {num_classes} classes")
        finite = torch.isfinite(logits).all(dim=1)
        if not finite.all():
            raise ValueError(f"the outputs for {int((~finite).sum())} of {len(labels)} images are not finite")
        logits = logits.double()
        rank = true_class_rank(logits, labels)
        confidence, predicted = torch.softmax(logits, dim=1).max(dim=1)
        predicted = torch.where(rank < 1, labels, predicted)  # in a tie, what the rank counts as a hit is one here too
        self.images += len(labels)
        self.hits += torch.stack([(rank < 1).sum(), (rank < 5).sum()])
        self.loss_sum += float(cross_entropy_sum(logits, labels))
        self.confusion.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
        chosen = (torch.ceil(confidence * BINS).long() - 1).clamp(0, BINS - 1)
        counts = torch.stack([torch.ones_like(confidence), (rank < 1).double(), confidence], dim=1)
        self.bins.index_add_(0, chosen, counts)

    def report(self, class_names: Sequence[str]) -> Dict[str, Any]:
        """Everything as numbers and lists.

        Raises:
            ValueError: no image was counted.
        """
        if self.images == 0:
            raise ValueError("no image was counted, so there is nothing to report")
        totals = self.confusion.sum(dim=1)
        by_class = [
            {"name": name, "images": int(total), "top1": int(hits) / int(total) if total else None}
            for name, total, hits in zip(class_names, totals, self.confusion.diagonal())
        ]
        return {
            "images": self.images,
            "top1": int(self.hits[0]) / self.images,
            "top5": int(self.hits[1]) / self.images,
            "loss": self.loss_sum / self.images,
            "ece": float((self.bins[:, 1] - self.bins[:, 2]).abs().sum()) / self.images,
            "classes": by_class,
            "confusion": self.confusion.tolist(),
        }
