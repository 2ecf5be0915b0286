"""analyze.py proxy: how well each proxy fits its channels, and so which condition of Theorem 3 fails."""

from __future__ import annotations

import argparse
from statistics import mean
from typing import Any, Dict, List

import torch

from analysis.commands.arguments import Commands
from analysis.commands.networks import (
    Measured,
    NetworkSource,
    add_network_command,
    explained,
    settle_source,
    title_of,
)
from analysis.power import measure_power
from analysis.proxy_fit import fit_table, measure_proxy_fit, refitted
from analysis.results_file import write_results


def add(commands: Commands, networks: NetworkSource) -> None:
    summary = "how well each proxy of Proxy Normalization fits its channels: which condition of Theorem 3 fails"
    parser = add_network_command(commands, "proxy", summary)
    parser.add_argument(
        "--refit",
        action="store_true",
        help="also P1 of y with each proxy refitted to its channel's mean and deviation, on the same images",
    )
    parser.set_defaults(
        command=lambda options: proxy(options, networks), form="evaluation", when_stopped="nothing was written"
    )


def proxy(options: argparse.Namespace, networks: NetworkSource) -> None:
    """Print the fit of every proxy of one network, or of each checkpoint of a run."""
    settle_source(options, "proxy")
    points: List[Dict[str, Any]] = []
    title = ""
    for measured in networks(options):
        title = title_of(options, measured)
        with explained(measured):
            fits = measure_proxy_fit(measured.network, measured.batches)
            points.append({"name": measured.name, "layers": [fit._asdict() for fit in fits]})
            print(f"{measured.name}\n{fit_table(fits)}")
            if options.refit:
                points[-1]["refitted"] = refit(measured)
    write_results(options.out / "proxy.json", {"title": title, "points": points})
    print(options.out / "proxy.json")


def refit(measured: Measured) -> List[Dict[str, Any]]:
    """Power at each norm with refitted proxies."""
    before = measure_power(measured.network, measured.batches)
    after = measure_power(refitted(measured.network, torch.cat(measured.batches)), measured.batches)
    means = (mean([layer.layer_power()[0] for layer in meter.layers.values()]) for meter in (before, after))
    print("P1 of y, mean over norms: {:.3f} as it is, {:.3f} with every proxy refitted".format(*means))
    return after.records()
