"""analyze.py curves: pictures of single runs, while they run, after a stop, or once more of finished ones."""

from __future__ import annotations

import argparse
from pathlib import Path

from analysis.commands.arguments import Commands, add_command
from analysis.curves import plot_curves
from analysis.settings import read_settings, run_title


def add(commands: Commands) -> None:
    parser = add_command(commands, "curves", "loss and accuracy of each run, also while it runs or after a stop")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders: curves.png, and power.png with a power.jsonl")
    parser.set_defaults(command=curves, when_stopped="the pictures of the runs before it are saved")


def curves(options: argparse.Namespace) -> None:
    """curves.png of each run, and power.png where it measures power."""
    from analysis.power_plot import plot_power_log

    for folder in options.runs:
        config, metrics, power = folder / "config.yaml", folder / "metrics.jsonl", folder / "power.jsonl"
        if not config.exists():
            raise ValueError(f"{folder} is not a run folder: it has no {config.name}")
        if not metrics.exists():
            raise ValueError(f"{folder} has no {metrics.name} yet; draw it after the run's first log line")
        title = run_title(folder.resolve().name, read_settings(config))
        plot_curves(metrics, folder / "curves.png", title)
        print(folder / "curves.png")
        if power.exists():
            plot_power_log(power, folder / "power.png", title)
            print(folder / "power.png")
