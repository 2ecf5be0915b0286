"""Cross entropy as a sum over images, with label smoothing; the division by the number of images happens elsewhere."""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor

# The label of padding: images that fill up the last batch of an evaluation and must not count.
IGNORED = -1


def cross_entropy_sum(
    logits: Tensor, labels: Tensor, label_smoothing: float = 0.0, weights: Optional[Tensor] = None
) -> Tensor:
    """Sum over images of the cross entropy between smoothed labels and softmax(logits).

    loss = sum_i [-(1 - s) log p_i(y_i) - s / K sum_k log p_i(k)], with p_i = softmax(logits_i), s the label smoothing
    and K the number of classes: the mass s is spread evenly over all classes, the true one included.

    A mixed image has several labels; its loss is their losses' sum with the labels' weights, which add up to 1:
    log p_i(y_i) becomes sum_j w_ij log p_i(y_ij).

    A sum, not a mean, because micro-batches and processes may hold different numbers of counted images; sums add up
    to the same total however the images are split.

    Args:
        logits: one row of class scores per image.
        labels: class indices; IGNORED marks padding, which adds nothing.
        label_smoothing: s, 0 <= s < 1.
        weights: w, of the labels of mixed images; none of these is padding.

    Shape: logits (N, K), labels (N,) -> scalar; with weights, labels (N, J), weights (N, J).
    dtype: computed and returned in float32 whatever the logits' type, but float64 stays float64.

    Raises:
        ValueError: shapes that do not fit.
        IndexError, RuntimeError: from torch, a label outside 0..K-1 on devices that check indices.
    Source: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2016, section 7.
    """
    if logits.dim() != 2 or labels.dim() != (1 if weights is None else 2):
        raise ValueError(
            f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} must be (images, classes) and (images,), "
            "or (images, labels) with weights"
        )
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_probabilities = torch.log_softmax(wide, dim=1)
    if weights is None:
        losses = -true_class_values(log_probabilities, labels)
    else:
        losses = -(weights * torch.gather(log_probabilities, 1, labels.long())).sum(dim=1)
    if label_smoothing > 0:
        # The branch also keeps 0 x inf = NaN away when a logit of -inf excludes a class and nothing is smoothed.
        losses = (1.0 - label_smoothing) * losses - label_smoothing * log_probabilities.mean(dim=1)
    if weights is None:
        losses = losses.masked_fill(labels == IGNORED, 0.0)
    return losses.sum()


def true_class_values(values: Tensor, labels: Tensor) -> Tensor:
    """values[i, labels[i]] for each image; padding reads class 0, so mask the result. Shape: (N, K), (N,) -> (N,)."""
    # Only IGNORED is replaced: any other label outside the classes still fails in gather instead of passing as class 0.
    classes = labels.masked_fill(labels == IGNORED, 0)
    return torch.gather(values, 1, classes.long().unsqueeze(1)).squeeze(1)
