"""analyze.py plot: results of power and random-net, side by side in one picture."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from analysis.commands.arguments import Commands, add_command
from analysis.results_file import read_results
from configs.arguments import output_file, positive


def add(commands: Commands) -> None:
    parser = add_command(commands, "plot", "results of power and random-net, side by side in one picture")
    option = parser.add_argument
    option("results", nargs="+", type=Path, help="power.json files")
    option("--titles", nargs="+", help="one per result; default: the norm, the network, or the run's folder")
    option("--columns", type=positive, default=6, help="plots in a row")
    option("--note", default="", help="a line below the plots")
    option("--out", type=output_file, required=True, help="the picture")
    parser.set_defaults(command=plot, when_stopped="nothing was written")


def plot(options: argparse.Namespace) -> None:
    """Draw one panel for each results file; bands are over its seeds, or over its checkpoints."""
    from analysis.power_plot import plot_power
    from analysis.power_results import panel_of_results

    panels = [panel_of_results(read_results(path), path) for path in options.results]
    if options.titles is not None:
        if len(options.titles) != len(panels):
            raise ValueError(f"{len(options.titles)} --titles for {len(panels)} results; give one for each")
        panels = [replace(panel, title=title) for panel, title in zip(panels, options.titles)]
    plot_power(panels, options.out, columns=min(options.columns, len(panels)), note=options.note)
    for panel in panels:
        p1 = panel.powers[:, :, 0]
        numbers = f"mean {p1.mean():.3f}, largest {p1.max():.3f}, at the last norm {p1[:, -1].mean():.3f}"
        print(f"{panel.title:<20} P1: {numbers}")
    print(options.out)
