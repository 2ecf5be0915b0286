"""analyze.py power: power decomposition at every norm of a run's checkpoints, or of a timm or torchvision network."""

from __future__ import annotations

import argparse
from typing import Dict

from tqdm import tqdm

from analysis.commands.arguments import Commands
from analysis.commands.networks import (
    Measured,
    NetworkSource,
    add_network_command,
    explained,
    settle_source,
    title_of,
)
from analysis.power import FORMS, PowerMeter, measure_power
from configs.counted import counted


def add(commands: Commands, networks: NetworkSource) -> None:
    summary = "power decomposition at every norm of a run's checkpoints, or of a timm or torchvision network"
    parser = add_network_command(commands, "power", summary)
    parser.add_argument(
        "--form",
        choices=list(FORMS),
        default="evaluation",
        help="batch norm by running statistics (default), or by those of each batch, which then has a run's "
        "norm_batch_size images, or all images of a model, where --batch-size is left out",
    )
    parser.set_defaults(command=lambda options: power(options, networks), when_stopped="what was measured is saved")


def power(options: argparse.Namespace, networks: NetworkSource) -> None:
    """Save the power decomposition of one network, or of all checkpoints of a run, as numbers and a picture."""
    from analysis.power_results import save_power

    settle_source(options, "power")
    meters: Dict[str, PowerMeter] = {}
    title, images = "", 0
    try:
        for measured in networks(options):
            meters[measured.name] = meter = measure(measured, options.form)
            title, images = title_of(options, measured), sum(len(batch) for batch in measured.batches)
            tell(measured.name, meter)
            if options.run is None:
                print(meter.table())
    finally:  # a checkpoint that is measured is not lost where a later one is stopped or torn
        if meters:
            save_power(options.out, title, meters, {"form": options.form, "images": images})
            print(f"{options.out}: power.json, channels.npz (P1 to P4 of each channel), power.png")


def tell(name: str, meter: PowerMeter) -> None:
    """Print one line about a network."""
    p1 = {path: statistics.layer_power()[0] for path, statistics in meter.layers.items()}
    largest = max(p1, key=lambda path: p1[path])
    mean = sum(p1.values()) / len(p1)
    print(f"{name:<24} {counted(len(p1), 'norm')}, P1: mean {mean:.3f}, largest {p1[largest]:.3f} ({largest})")


def measure(measured: Measured, form: str) -> PowerMeter:
    """Return the measurement, with the network's own errors explained."""
    batches = tqdm(measured.batches, desc=measured.name, unit=" batches", disable=None, leave=False)
    with explained(measured):
        return measure_power(measured.network, batches, form)
