"""What a trained network takes given images for."""

from __future__ import annotations

from pathlib import Path
from typing import List, Sequence, Tuple

import torch

from experiment.trained import Trained

Guess = Tuple[str, float]  # class, probability


@torch.no_grad()
def classify(trained: Trained, paths: Sequence[Path], count: int = 5) -> List[List[Guess]]:
    """Return the `count` most probable classes of each image, the first first.

    Raises:
        DataError: an image that cannot be read.
    """
    found = []
    for path in paths:
        pixels = trained.preprocessing.pixels(path).unsqueeze(0)
        logits = trained.network(trained.inputs(pixels))
        values, labels = torch.softmax(logits.double(), dim=1)[0].topk(min(count, trained.num_classes))
        found.append([(trained.class_names[label], value) for label, value in zip(labels.tolist(), values.tolist())])
    return found


def guesses_text(path: Path, guesses: Sequence[Guess]) -> str:
    """Return one line for the image, and one for each class."""
    return "\n".join([str(path), *(f"  {probability:7.2%}  {name}" for name, probability in guesses)])
