"""A detector of torchvision with GN+PN in its backbone, trained at batch 2.

    pip install torchvision
    python -m examples.torchvision_detector

Detectors usually freeze batch norm, since two images are not a batch to take statistics over; here nothing is frozen.
"""

import argparse
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor
from torchvision.models import resnet18
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from examples.minimal import parameter_groups
from normact import NormActFactory, convert_norm


def squares(count: int, size: int) -> Tuple[List[Tensor], List[Dict[str, Tensor]]]:
    """Return images of noise with one bright square each, and its box and class."""
    images, targets = [], []
    for _ in range(count):
        edge = int(torch.randint(size // 5, size // 2, ()))
        x, y = (int(torch.randint(0, size - edge, ())) for _ in range(2))
        image = 0.3 * torch.rand(3, size, size)
        image[:, y : y + edge, x : x + edge] += 0.6
        images.append(image)
        box = torch.tensor([[x, y, x + edge, y + edge]], dtype=torch.float32)
        targets.append({"boxes": box, "labels": torch.tensor([1])})
    return images, targets


def detector(norm_act: NormActFactory, size: int) -> FCOS:
    # In torchvision's ResNets activations come after additions: converting finds which norm has one behind it.
    body, report = convert_norm(resnet18(), norm_act)
    print(report)
    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    backbone = BackboneWithFPN(body, layers, [128, 256, 512], out_channels=64)
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,)), ((1.0,),) * 4)  # three maps, and one that is pooled
    return FCOS(backbone, 2, min_size=size, max_size=size, anchor_generator=anchors)


def main(arguments: Optional[Sequence[str]] = None) -> List[float]:
    parser = argparse.ArgumentParser(description="Trains a small detector with GN+PN on synthetic images.")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--size", type=int, default=96, help="of an image's edge")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = detector(NormActFactory(norm="group", max_groups=8), options.size)
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-4), lr=0.01, momentum=0.9)
    model.train()
    losses = []
    for step in range(1, options.steps + 1):
        losses.append(sum(model(*squares(2, options.size)).values()))
        optimizer.zero_grad()
        losses[-1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {losses[-1].item():.3f}")
    return [loss.item() for loss in losses]


if __name__ == "__main__":
    main()
