"""Images for the examples: stripes, made on the spot, or Fashion-MNIST from a folder with its four files."""

import gzip
from pathlib import Path
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from examples.minimal import stripes


class Images(NamedTuple):
    """(N, 3, H, W) float images, their labels, the same for testing, and the number of classes."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    num_classes: int


def load_images(fashion_mnist: Optional[str], num_train: int, num_test: int) -> Images:
    """Return the first images of Fashion-MNIST, or stripes where no folder is given."""
    if fashion_mnist is None:
        generator = torch.Generator().manual_seed(1)
        return Images(*stripes(num_train, generator), *stripes(num_test, generator), num_classes=3)
    folder = Path(fashion_mnist)
    train, test = _read(folder, "train", num_train), _read(folder, "t10k", num_test)
    return Images(*train, *test, num_classes=10)


def _read(folder: Path, half: str, count: int) -> "tuple[Tensor, Tensor]":
    values = []
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        with gzip.open(folder / f"{half}-{kind}-ubyte.gz") as file:
            values.append(torch.frombuffer(bytearray(file.read()[header:]), dtype=torch.uint8))
    images = values[0].view(-1, 1, 28, 28)[:count].float() / 255
    return ((images - 0.286) / 0.353).expand(-1, 3, -1, -1).contiguous(), values[1][:count].long()
