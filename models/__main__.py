"""`python -m models`: a table of all networks at their native image size, measured on the meta device."""

from __future__ import annotations

import torch

from models import NETWORKS, build_model
from models.cost import Cost, measure_cost
from proxynorm import NormActFactory


def measure_network(name: str, norm_act: NormActFactory) -> Cost:
    """Cost of one network of the table at its native size, with the classes of the data set it is known for."""
    image_size = NETWORKS[name].image_size
    with torch.device("meta"):
        model = build_model(name, num_classes=choose_num_classes(image_size), norm_act=norm_act)
    return measure_cost(model, image_size)


def choose_num_classes(image_size: int) -> int:
    """1000 (ImageNet) for large images, 10 (CIFAR-10) for small ones."""
    return 1000 if image_size >= 224 else 10


def main() -> None:
    print("parameters, forward multiply-adds, and megabytes (1e6) saved for backward per image in float32;")
    print("batch norm (BN) against group norm with proxy norm (GN+PN), both as plain torch operations")
    print(f"{'network':24}{'image':>6}{'params BN':>13}{'params GN+PN':>14}{'GMACs':>9}{'MB BN':>9}{'MB GN+PN':>10}")
    for name, network in NETWORKS.items():
        batch = measure_network(name, NormActFactory(norm="batch", proxy=False))
        num_groups = 4 if name.startswith("efficientnet") else 8
        proxy = measure_network(name, NormActFactory(norm="group", proxy=True, num_groups=num_groups))
        print(
            f"{name:24}{network.image_size:>6}{batch.parameters:>13,}{proxy.parameters:>14,}"
            f"{batch.multiply_adds / 1e9:>9.4f}"
            f"{batch.saved_bytes_per_image / 1e6:>9.2f}{proxy.saved_bytes_per_image / 1e6:>10.2f}"
        )


if __name__ == "__main__":
    main()
