"""What networks cost, measured without computing anything.

python -m models                         all networks at their native image size: totals
python -m models resnet50                one by layer: shapes, parameters, norms, what is kept for backward
python -m models resnet50 --norm batch --image-size 160
"""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from typing import List, Optional

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from configs.arguments import MOST_CLASSES, MOST_PIXELS, positive, whole
from configs.command_line import run_command
from models import NETWORKS, build_model, unknown_network
from models.layers import layers_table, measure_layers
from models.norm_costs import NORM_SETTINGS, measure_norm_costs
from normact import NormActFactory


def choose_num_classes(image_size: int) -> int:
    """1000 (ImageNet) for large images, 10 (CIFAR-10) for small ones."""
    return 1000 if image_size >= 224 else 10


def main(arguments: Optional[List[str]] = None) -> int:
    """Print the table of all networks, or the layers of one. Returns the exit code: 0 done, 2 no such network."""
    options = parse_arguments(arguments)
    try:
        if options.network is None:
            print_totals()
        else:
            print_layers(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse_arguments(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m models", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("network", nargs="?", metavar="NAME", help="one network, layer by layer; default: all of them, totals")
    add("--norm", default="group", help="as norm.name of an experiment; default: %(default)s")
    add("--num-groups", type=positive, help="of group norm; default: 8, in EfficientNets 4")
    add("--no-proxy", action="store_true", help="without Proxy Normalization")
    add("--recompute", action="store_true", help="as norm.recompute of an experiment")
    add("--image-size", type=whole(most=MOST_PIXELS), metavar="PIXELS", help="default: the network's native size")
    add("--num-classes", type=whole(most=MOST_CLASSES), help="default: 1000 for large images, 10 for small ones")
    words = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(words)
    if options.network is None and words:
        parser.error("these options apply to one network; name it first")
    return options


def print_layers(options: argparse.Namespace) -> None:
    """Print the layers of one network.

    Raises:
        ValueError: no such network, or a norm or size that it cannot have.
    """
    name, kind = options.network, options.norm.split("+")[0]
    if name not in NETWORKS:
        raise ValueError(unknown_network(name))
    size = options.image_size or NETWORKS[name].image_size
    groups = (4 if name.startswith("efficientnet") else 8) if kind == "group" else None
    proxy = not options.no_proxy and kind in ("batch", "layer", "group", "instance", "none")
    factory = NormActFactory(
        norm=options.norm, proxy=proxy, num_groups=options.num_groups or groups, recompute=options.recompute
    )
    with torch.device("meta"):
        model = build_model(
            name, num_classes=options.num_classes or choose_num_classes(size), norm_act=factory, in_channels=3
        )
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # copying a fake parameter asks for its address
        rows = measure_layers(model.to_empty(device="cpu"), size)
    print(f"{name} for {size} x {size} images; kB (1e3 bytes) kept for the backward pass of one image, float32")
    print(layers_table(rows))


def print_totals() -> None:
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
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # a reader that has seen enough, such as `head`, ends it silently
    sys.exit(run_command(main))
