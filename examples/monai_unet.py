"""MONAI's UNet on volumes at batch 2, with group norm, PReLU and Proxy Normalization in every block.

pip install monai
python -m examples.monai_unet
"""

import argparse
from typing import Optional, Sequence, Tuple

import torch
from monai.losses import DiceCELoss
from monai.networks.layers import Norm
from monai.networks.nets import UNet
from torch import Tensor, nn

from examples.minimal import parameter_groups
from normact import NormActFactory
from normact.adapters import for_monai


def balls(count: int, size: int) -> Tuple[Tensor, Tensor]:
    """Volumes (N, 1, D, H, W) with one bright ball each in noise, and where it is, of the same shape."""
    grid = torch.stack(torch.meshgrid(*[torch.arange(float(size))] * 3, indexing="ij"))
    centres = size * (0.25 + 0.5 * torch.rand(count, 3, 1, 1, 1))
    inside = ((grid - centres).square().sum(1, keepdim=True) < (size / 5) ** 2).float()
    return inside + 0.7 * torch.randn_like(inside), inside


def main(arguments: Optional[Sequence[str]] = None) -> float:
    parser = argparse.ArgumentParser(description="Segments synthetic volumes with MONAI's UNet and GN+PN.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--size", type=int, default=24, help="of a volume's edge")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    norm_act = NormActFactory(norm="group", max_groups=8)
    Norm.add_factory_callable("gnpn", for_monai(norm_act, nn.PReLU))  # each layer learns a slope of its own
    model = UNet(
        spatial_dims=3, in_channels=1, out_channels=1, channels=(8, 16, 32), strides=(2, 2), num_res_units=1,
        norm="gnpn", act=None,
    )  # fmt: skip
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-4), lr=0.1, momentum=0.9)
    criterion = DiceCELoss(sigmoid=True)
    for step in range(1, options.steps + 1):
        volumes, masks = balls(2, options.size)
        loss = criterion(model(volumes), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: Dice + cross-entropy {loss.item():.3f}")
    with torch.no_grad():
        volumes, masks = balls(8, options.size)
        found = (model(volumes) > 0).float()
    dice = (2 * (found * masks).sum() / (found + masks).sum()).item()
    print(f"Dice on 8 new volumes: {dice:.3f}")
    return dice


if __name__ == "__main__":
    main()
