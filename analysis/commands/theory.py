"""analyze.py theory: each statement of the paper that can be measured: claimed, measured, bound, verdict."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from tqdm import tqdm

from analysis.commands.arguments import Commands, add_command
from analysis.results_file import write_results
from analysis.theory import judge
from analysis.theory_nets import IDENTITY_SEEDS, IDENTITY_WIDTH, layers_to_measure, measure_nets
from configs.arguments import output_folder, positive
from models.random_net import RandomNetShape


def add(commands: Commands) -> None:
    summary = "each statement of the paper that can be measured: claimed, measured, bound, verdict"
    parser = add_command(commands, "theory", summary)
    option = parser.add_argument
    option("--out", type=output_folder, required=True, help="folder of theory.md, theory.json and pictures")
    option("--width", type=positive, default=128, help="channels of each layer, a multiple of 32")
    option("--depth", type=positive, default=20, help="layers")
    option("--seeds", type=positive, default=3, help="nets of each norm")
    option("--identity-width", type=positive, default=IDENTITY_WIDTH, help="channels where the bound is an equality")
    option(
        "--identity-seeds",
        type=positive,
        default=IDENTITY_SEEDS,
        help="nets with the identity, 2 or more: 3 tell the factor of a layer to 0.1 %% and the power at layer 20 to "
        "6 %%, 12 to 0.06 %% and 3 %%",
    )
    parser.set_defaults(command=theory, when_stopped="finished nets are kept; the same command continues from there")


def theory(options: argparse.Namespace) -> None:
    """Measure what is missing and write the verdict page."""
    from analysis.theory_page import plot_channel_distributions, plot_theory, write_page

    shape = RandomNetShape(width=options.width, depth=options.depth)
    seeds, identity_seeds = options.seeds, options.identity_seeds
    with tqdm(total=layers_to_measure(shape, seeds, identity_seeds), unit=" layers", disable=None) as bar:
        nets = measure_nets(
            options.out / "nets",
            shape,
            seeds,
            identity_width=options.identity_width,
            identity_seeds=identity_seeds,
            advance=bar.update,
        )
    statements = judge(nets)
    write_page(statements, nets, options.out / "theory.md")
    write_results(options.out / "theory.json", {"statements": [asdict(statement) for statement in statements]})
    plot_theory(nets, options.out / "theory.png")
    plot_channel_distributions(shape, options.out / "figure1.png")
    for statement in statements:
        print(f"{statement.verdict:<14} {statement.name}: {statement.claimed}")
    print(f"{options.out}: theory.md, theory.json, theory.png, figure1.png")
