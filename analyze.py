"""The paper's analysis on any network:  python analyze.py power|random-net|theory|plot ...

python analyze.py power --run runs/fashion_rn20_gnpn     power decomposition of a run's checkpoints
python analyze.py power --model timm:resnet18            ... of a timm or torchvision network
python analyze.py random-net --norm layer layer+pn --out DIR     random nets of Definition 1
python analyze.py theory --out DIR                       each theorem: claimed, measured, bound, verdict
python analyze.py plot A/power.json B/power.json --out X.png     several results as one row of power plots
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from analysis.images import one_over_f_images, photo_patches, standardized
from analysis.norm_name import norm_label, parse_norm
from analysis.power import FORMS, PowerMeter, measure_power
from analysis.power_plot import PowerPanel, evenly, panel_of_layers, plot_power
from analysis.random_net_runs import results_paths, run_random_nets
from analysis.results_file import ResultsError, read_results, write_results
from analysis.theory import judge
from analysis.theory_nets import layers_to_measure, measure_nets
from analysis.theory_page import plot_channel_distributions, plot_theory, write_page
from backends.host_memory import keep_freed_memory
from configs import ConfigError, load_config
from configs.schema import DataConfig
from datasets import DataError, build_datasets
from experiment import build_network, norm_record
from models.random_net import RandomNetShape
from proxynorm import NormActFactory, convert_norm
from training.checkpoint import CheckpointError, check_norm, load_checkpoint
from training.run_folder import RunFolder
from training.weights import load_model_state


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs the command line and returns the exit code: 0 done, 2 wrong arguments or files."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    keep_freed_memory()
    try:
        options.command(options)
    except (ConfigError, DataError, CheckpointError, ResultsError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse_arguments(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="power|random-net|theory|plot")
    add_power(commands)
    add_random_net(commands)
    add_theory(commands)
    add_plot(commands)
    return parser.parse_args(arguments)


def add_power(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "power",
        help="power decomposition at every norm of a run's checkpoints, or of a timm or torchvision network",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="a run's folder: all of its checkpoints, on its evaluation images")
    source.add_argument("--model", help="timm:NAME or torchvision:NAME")
    add("--out", type=Path, help="folder of power.json, channels.npz and power.png; default: RUN/power, else needed")
    add("--step", type=int, help="with --run: only the checkpoint of this step")
    add("--weights", type=Path, help="with --model: a state dict; newly drawn weights (seed 0) where left out")
    add("--convert", metavar="NORM", help="with --model: replace its norms by this one, e.g. group8+pn")
    add("--images", default="1/f", help="with --model: 1/f, fashion_mnist, or the path of a photograph or a folder")
    add("--image-size", type=int, default=64, help="with --model: pixels per side")
    add("--num-images", type=int, default=1000, help="the first this many images")
    add("--form", choices=list(FORMS), default="evaluation", help="batch norm by running statistics, or by the batch's")
    add("--batch-size", type=int, help="images of one forward pass; default: norm_batch_size in training form, else 50")
    parser.set_defaults(command=power)


def power(options: argparse.Namespace) -> None:
    """The power decomposition of one network, or of all checkpoints of a run, as numbers and a picture."""
    out = options.out or (options.run / "power" if options.run is not None else None)
    if out is None:
        raise ValueError("--model needs --out, the folder to write to")
    networks = networks_of_run(options) if options.run is not None else [network_of_library(options)]
    meters: Dict[str, PowerMeter] = {}
    for name, network, batches in networks:
        bar = tqdm(batches, desc=name, unit=" batches", disable=None)
        meters[name] = meter = measure_power(network, bar, options.form)
        p1 = [statistics.layer_power()[0] for statistics in meter.layers.values()]
        print(f"{name:<24} {len(p1)} norms, P1 {p1[0]:.3f} at the first, {p1[-1]:.3f} at the last")
        for path, reason in meter.not_measured.items():
            print(f"  not measured: {path}: {reason}")
    save_power(out, meters, {"form": options.form, "images": options.num_images})


def save_power(out: Path, meters: Mapping[str, PowerMeter], settings: Mapping[str, Any]) -> None:
    """power.json, P1 to P4 of each channel in channels.npz, and power.png."""
    points = [
        {"name": name, "layers": meter.records(), "not_measured": meter.not_measured} for name, meter in meters.items()
    ]
    write_results(out / "power.json", {**settings, "points": points})
    channels: Dict[str, Any] = {
        f"{name}/{path}": statistics.channel_power().numpy()
        for name, meter in meters.items()
        for path, statistics in meter.layers.items()
    }
    np.savez_compressed(out / "channels.npz", **channels)
    panels = [panel_of_layers(name, meter.records()) for name, meter in evenly(list(meters.items()), 12)]
    note = "batch norm by the statistics of each batch" if settings["form"] == "training" else ""
    plot_power(panels, out / "power.png", columns=min(6, len(panels)), note=note)
    print(f"{out}: power.json, channels.npz (P1 to P4 of each channel), power.png")


def networks_of_run(options: argparse.Namespace) -> Iterator[Tuple[str, nn.Module, List[Tensor]]]:
    """Name, network and batches of each checkpoint of a run."""
    for name in ("weights", "convert"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} has no effect with --run; leave it out")
    folder = RunFolder(options.run)
    config = load_config(str(folder.config))
    data = build_datasets(config.data, config.run.seed)
    factory, network = build_network(config, data)
    if options.num_images > len(data.evaluation):
        raise ValueError(
            f"--num-images {options.num_images}: {config.data.name} has {len(data.evaluation)} to evaluate on"
        )
    batch_size = options.batch_size or (config.batch.norm_batch_size if options.form == "training" else 50)
    if options.form == "training" and options.num_images % max(batch_size, 1):
        raise ValueError(
            f"--num-images {options.num_images} is not a multiple of the normalization batch {batch_size}; use "
            f"{options.num_images - options.num_images % batch_size}, or give another --batch-size"
        )
    pixels = torch.stack([data.evaluation[index][0] for index in range(options.num_images)])
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
    batches = list(((pixels / 255 - mean) / std).split(batch_size))
    paths = sorted(folder.checkpoints.glob("step_*.pt"))
    if options.step is not None:
        paths = [folder.checkpoints / f"step_{options.step:08d}.pt"]
    if not paths:
        raise ValueError(f"{folder.checkpoints} holds no checkpoint")
    for path in paths:
        saved = load_checkpoint(path)
        check_norm(saved["norm"], norm_record(factory))
        load_model_state(network, saved["model"])
        epochs = saved["step"] * config.batch.global_batch_size / len(data.train)
        yield f"epoch {epochs:.2f}", network, batches


def network_of_library(options: argparse.Namespace) -> Tuple[str, nn.Module, List[Tensor]]:
    """Name, network and batches of a timm or torchvision network."""
    library, _, name = options.model.partition(":")
    if library not in ("timm", "torchvision"):
        raise ValueError(f"--model {options.model}: write timm:NAME or torchvision:NAME")
    importlib.import_module("datasets.torchvision_import")  # which timm needs too
    torch.manual_seed(0)
    if library == "timm":
        network = importlib.import_module("timm").create_model(name)
    else:
        network = importlib.import_module("torchvision.models").get_model(name, weights=None)
    if options.weights is not None:
        network.load_state_dict(torch.load(options.weights, map_location="cpu", weights_only=True))
    if options.convert is not None:
        network, report = convert_norm(network, NormActFactory(**parse_norm(options.convert)))
        print(report)
        name = f"{name}, {norm_label(options.convert)}"
    images = image_loader(options.images, options.num_images, options.image_size)(0)
    return name, network, list(images.expand(-1, 3, -1, -1).split(options.batch_size or 50))


def add_random_net(commands: argparse._SubParsersAction) -> None:
    shape = RandomNetShape()
    parser = commands.add_parser(
        "random-net",
        help="power of random nets of Definition 1, by layer",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--norm", nargs="+", required=True, help="batch, layer, instance, group8, ... with +ws and +pn: layer+pn")
    add(
        "--out",
        type=Path,
        required=True,
        help="folder of power.json and power.png; one per norm where several are given",
    )
    add("--activation", default=shape.activation, help="a name known to proxynorm, or identity")
    add("--width", type=int, default=shape.width, help="channels of each layer")
    add("--depth", type=int, default=shape.depth, help="layers")
    add("--kernel-size", type=int, default=shape.kernel_size)
    add("--gamma-mean", type=float, default=shape.gamma_mean)
    add("--gamma-std", type=float, default=shape.gamma_std)
    add("--beta-std", type=float, default=shape.beta_std, help="the mean of beta is 0")
    add("--seeds", type=int, default=2, help="nets, each on images of its own")
    add("--num-images", type=int, default=64)
    add("--image-size", type=int, default=16, help="pixels per side")
    add("--images", default="1/f", help="1/f (made), fashion_mnist, or the path of a photograph or a folder of them")
    parser.set_defaults(command=random_net)


def random_net(options: argparse.Namespace) -> None:
    """Random nets of each norm, their results and one picture."""
    for name in ("width", "depth", "kernel_size", "seeds", "num_images", "image_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)} must be at least 1")
    for norm in options.norm:
        parse_norm(norm)
    load = image_loader(options.images, options.num_images, options.image_size)
    shape = RandomNetShape(
        width=options.width,
        depth=options.depth,
        kernel_size=options.kernel_size,
        in_channels=load(0).shape[1],
        activation=options.activation,
        gamma_mean=options.gamma_mean,
        gamma_std=options.gamma_std,
        beta_std=options.beta_std,
    )
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
    note = (
        f"width {shape.width}, {shape.activation}; bands: {options.seeds} seeds; dashed: Theorem 1, P1 stays above it"
    )
    plot_power(panels, options.out / "power.png", columns=min(len(panels), 6), note=note)
    for norm, panel in zip(paths, panels):
        p1, p2, p3, p4 = panel.powers.mean(axis=0)[-1]
        print(f"{norm:<14} layer {shape.depth}: P1 {p1:.4f}  P2 {p2:.4f}  P3 {p3:.4f}  P4 {p4:.4f}")
    print(f"{options.out / 'power.png'} and {', '.join(str(path) for path in paths.values())}")


def panel_of_random_net(norm: str, powers: np.ndarray, shape: RandomNetShape) -> PowerPanel:
    """A norm's panel, with the theorem's bound on P1 where it applies."""
    bound = None
    if norm == "layer":
        bound = np.array([1.0 - shape.bound(layer) for layer in range(1, shape.depth + 1)])
    return PowerPanel(norm_label(norm), powers, bound)


def add_theory(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "theory",
        help="each statement of the paper that can be measured: claimed, measured, bound, verdict",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of theory.md, theory.json and pictures")
    add("--width", type=int, default=128, help="channels of each layer, a multiple of 32")
    add("--depth", type=int, default=20, help="layers")
    add("--seeds", type=int, default=2)
    parser.set_defaults(command=theory)


def theory(options: argparse.Namespace) -> None:
    """The verdict page."""
    shape = RandomNetShape(width=options.width, depth=options.depth)
    with tqdm(total=layers_to_measure(shape, options.seeds), unit=" layers", disable=None) as bar:
        nets = measure_nets(options.out / "nets", shape, options.seeds, advance=bar.update)
    statements = judge(nets)
    write_page(statements, nets, options.out / "theory.md")
    write_results(options.out / "theory.json", {"statements": [asdict(statement) for statement in statements]})
    plot_theory(nets, options.out / "theory.png")
    plot_channel_distributions(shape, options.out / "figure1.png")
    for statement in statements:
        print(f"{'holds' if statement.holds else 'DOES NOT HOLD':<14} {statement.name}: {statement.claimed}")
    print(f"{options.out}: theory.md, theory.json, theory.png, figure1.png")


def add_plot(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("plot", help="results of power and random-net, side by side in one picture")
    add = parser.add_argument
    add("results", nargs="+", type=Path, help="power.json files")
    add("--titles", nargs="+", help="one for each; default: the norm, or the network")
    add("--columns", type=int, default=6, help="plots in a row")
    add("--note", default="", help="a line below the plots")
    add("--out", type=Path, required=True, help="the picture")
    parser.set_defaults(command=plot)


def plot(options: argparse.Namespace) -> None:
    """One panel for each results file; bands are over its seeds, or over its checkpoints."""
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


def panel_of_results(results: Mapping[str, Any], path: Path) -> PowerPanel:
    """The panel of a power.json of `power` or of `random-net`."""
    if "layers" in results:
        return panel_of_random_net(results["norm"], np.array(results["layers"]), RandomNetShape(**results["shape"]))
    if "points" not in results:
        raise ValueError(f"{path} is no power.json: it has neither layers nor points")
    powers = [[layer["power"] for layer in point["layers"]] for point in results["points"]]
    return PowerPanel(results["points"][-1]["name"], np.array(powers))


def image_loader(source: str, count: int, size: int) -> Callable[[int], Tensor]:
    """The function that gives the `count` images of a seed, centred and scaled over the set."""
    if source == "1/f":
        return lambda seed: one_over_f_images(count, size, seed)
    if source == "fashion_mnist":
        return lambda seed: fashion_mnist_images(count, size, seed)
    return lambda seed: photo_patches(source, count, size, seed)


def fashion_mnist_images(count: int, size: int, seed: int) -> Tensor:
    """The centres of evaluation images seed * count to (seed + 1) * count - 1."""
    images = build_datasets(DataConfig(name="fashion_mnist"), 0).evaluation
    first = seed * count
    if first + count > len(images):
        raise ValueError(f"seed {seed} needs {first + count} images and Fashion-MNIST has {len(images)} to evaluate on")
    stack = torch.stack([images[index][0] for index in range(first, first + count)])
    border = (stack.shape[2] - size) // 2
    if border < 0:
        raise ValueError(f"--image-size {size}: images of Fashion-MNIST have {stack.shape[2]} pixels per side")
    return standardized(stack[:, :, border : border + size, border : border + size])


if __name__ == "__main__":
    sys.exit(main())
