"""analyze.py random-net: power of random nets of Definition 1, by layer."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from tqdm import tqdm

from analysis.commands.arguments import Commands, ImageLoader, add_command
from analysis.norm_name import parse_norm
from analysis.random_net_runs import results_paths, run_random_nets
from configs.arguments import output_folder, positive, real
from configs.counted import counted
from models.random_net import RandomNetShape


def add(commands: Commands, image_loader: ImageLoader) -> None:
    shape = RandomNetShape()
    parser = add_command(commands, "random-net", "power of random nets of Definition 1, by layer")
    option = parser.add_argument
    option("--norm", nargs="+", required=True, help="batch, layer, instance, group8, ... with +ws and +pn: layer+pn")
    option(
        "--out",
        type=output_folder,
        required=True,
        help="folder of power.json and power.png; one per norm where several are given",
    )
    option("--activation", default=shape.activation, help="a name known to normact, or identity")
    option("--width", type=positive, default=shape.width, help="channels of each layer")
    option("--depth", type=positive, default=shape.depth, help="layers")
    option("--kernel-size", type=positive, default=shape.kernel_size, help="of the convolutions")
    option("--gamma-mean", type=real(), default=shape.gamma_mean, help="mean of gamma")
    option("--gamma-std", type=real(0), default=shape.gamma_std, help="standard deviation of gamma")
    option("--beta-std", type=real(0), default=shape.beta_std, help="standard deviation of beta, whose mean is 0")
    option("--seeds", type=positive, default=2, help="nets, each on images of its own")
    option("--num-images", type=positive, default=64, help="of each net")
    option("--image-size", type=positive, default=16, help="pixels per side")
    option(
        "--images",
        default="1/f",
        help="1/f (synthetic), fashion_mnist, or the path of a photograph or a folder of them",
    )
    parser.set_defaults(
        command=lambda options: random_net(options, image_loader),
        when_stopped="finished seeds are kept; the same command continues from there",
    )


def random_net(options: argparse.Namespace, image_loader: ImageLoader) -> None:
    """Random nets of each norm, their results and one picture."""
    from analysis.power_plot import plot_power
    from analysis.power_results import panel_of_random_net

    for norm in options.norm:
        parse_norm(norm)
    load = image_loader(options.images, options.num_images, options.image_size)
    shape = shape_of(options, in_channels=load(0).shape[1])
    described = f"{options.num_images} of {options.images}, {options.image_size} pixels"
    paths = results_paths(options.out, options.norm)
    panels = []
    with tqdm(total=len(paths) * options.seeds * shape.depth, unit=" layers", disable=None) as bar:
        for norm, path in paths.items():
            bar.set_description(norm)
            results = run_random_nets(
                path,
                norm,
                shape,
                seeds=options.seeds,
                images_of_seed=load,
                images_described=described,
                advance=bar.update,
            )
            panels.append(panel_of_random_net(norm, np.array(results["layers"]), shape))
    note = f"random nets of width {shape.width}, {shape.activation}; means over {counted(options.seeds, 'net')}"
    plot_power(panels, options.out / "power.png", columns=min(len(panels), 7), note=note)
    for norm, panel in zip(paths, panels):
        p1, p2, p3, p4 = panel.powers.mean(axis=0)[-1]
        print(f"{norm:<14} layer {shape.depth}: P1 {p1:.4f}  P2 {p2:.4f}  P3 {p3:.4f}  P4 {p4:.4f}")
    print(f"{options.out / 'power.png'} and {', '.join(str(path) for path in paths.values())}")


def shape_of(options: argparse.Namespace, in_channels: int) -> RandomNetShape:
    """Return the shape that the options describe."""
    names = ("width", "depth", "kernel_size", "activation", "gamma_mean", "gamma_std", "beta_std")
    settings: Any = {name: getattr(options, name) for name in names}
    return RandomNetShape(in_channels=in_channels, **settings)
