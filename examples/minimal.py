"""The layer in plain torch: a small network with group norm and Proxy Normalization, trained on synthetic images.

    python -m examples.minimal

It needs torch and normact, no data, and a few seconds. Copy what you need.
"""

import argparse
from typing import List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normact import NormActFactory, affine_parameter_names, fold_for_inference


class SmallNet(nn.Module):
    """Three convolutions, each followed by norm, affine, activation and PN as one module."""

    def __init__(self, norm_act: NormActFactory, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.norm1 = norm_act(16, activation="relu")  # in place of BatchNorm2d(16) and ReLU()
        self.conv2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.norm2 = norm_act(32, activation="relu")
        self.conv3 = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.norm3 = norm_act(32, activation="relu")
        self.classifier = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm1(self.conv1(images))
        x = self.norm2(self.conv2(x))
        x = self.norm3(self.conv3(x))
        return self.classifier(x.mean((2, 3)))


def stripes(num_images: int, generator: torch.Generator) -> Tuple[Tensor, Tensor]:
    """Return images (N, 3, 16, 16) of horizontal, vertical or diagonal waves in noise, and their classes (N,)."""
    labels = torch.randint(0, 3, (num_images,), generator=generator)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    directions = torch.stack([y, x, (x + y) / 2**0.5])[labels]
    phases = 6.3 * torch.rand(num_images, 1, 1, generator=generator)
    waves = torch.sin(1.2 * directions + phases).unsqueeze(1)
    return waves + 1.2 * torch.randn(num_images, 3, 16, 16, generator=generator), labels


def parameter_groups(model: nn.Module, weight_decay: float) -> List[dict]:
    """Return groups in which all parameters decay but the scales and shifts of norms; the proxy's do."""
    without = affine_parameter_names(model)
    named = list(model.named_parameters())
    return [
        {"params": [p for name, p in named if name not in without], "weight_decay": weight_decay},
        {"params": [p for name, p in named if name in without], "weight_decay": 0.0},
    ]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    return (model(images).argmax(1) == labels).float().mean().item()


def main(arguments: Optional[Sequence[str]] = None) -> float:
    parser = argparse.ArgumentParser(description="Trains a small network with normact in plain torch.")
    parser.add_argument("--norm", default="group", help="group, layer, instance, batch, ...")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=32, help="2 works as well: no image depends on another")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = SmallNet(NormActFactory(norm=options.norm), num_classes=3)
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-4), lr=0.05, momentum=0.9)
    model.train()
    for step in range(1, options.steps + 1):
        images, labels = stripes(options.batch_size, generator)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    images, labels = stripes(500, generator)
    top1 = accuracy(model, images, labels)
    print(f"top-1 on 500 new images: {top1:.3f}")
    folded, _ = fold_for_inference(model)  # PN's constants move into the convolutions
    with torch.no_grad():
        difference = (folded(images) - model(images)).abs().max().item()
    print(f"folded for inference: largest difference of an output {difference:.1e}")
    return top1


if __name__ == "__main__":
    main()
