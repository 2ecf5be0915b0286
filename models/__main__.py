"""`python -m models`: a table of all networks at their native image size, measured without computing anything."""

from __future__ import annotations

import signal

from configs.standard_streams import open_standard_streams
from models import NETWORKS
from models.norm_costs import NORM_SETTINGS, measure_norm_costs


def choose_num_classes(image_size: int) -> int:
    """1000 (ImageNet) for large images, 10 (CIFAR-10) for small ones."""
    return 1000 if image_size >= 224 else 10


def main() -> None:
    print("parameters, forward multiply-adds, and megabytes (1e6) saved for backward per image in float32,")
    print("with batch norm (BN), group norm with proxy norm (GN+PN), and GN+PN that computes its outputs again;")
    print("in the fused kernels, - where there are none")
    heads = f"{'network':24}{'image':>6}{'params BN':>13}{'params GN+PN':>14}{'GMACs':>9}"
    print(heads + f"{'MB BN':>9}{'GN+PN':>9}{'recompute':>11}")
    for name, network in NETWORKS.items():
        costs = measure_norm_costs(name, num_classes=choose_num_classes(network.image_size))
        batch, proxy, recomputed = (costs[label] for label in NORM_SETTINGS)
        assert batch is not None  # it needs no kernel
        row = f"{name:24}{network.image_size:>6}{batch.parameters:>13,}"
        row += f"{proxy.parameters:>14,}" if proxy else f"{'-':>14}"
        row += f"{batch.multiply_adds / 1e9:>9.4f}{batch.saved_bytes_per_image / 1e6:>9.2f}"
        for cost, width in ((proxy, 9), (recomputed, 11)):
            row += f"{cost.saved_bytes_per_image / 1e6:>{width}.2f}" if cost else f"{'-':>{width}}"
        print(row)


if __name__ == "__main__":
    open_standard_streams()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough, such as `head`, ends it silently
    main()
