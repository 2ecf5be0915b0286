"""The paper's analysis on any network.

python analyze.py power --run runs/fashion_rn20_gn8pn     power decomposition of a run's checkpoints
python analyze.py power --model timm:resnet18            ... of a timm or torchvision network
python analyze.py proxy --run runs/fashion_rn20_gn8pn     how well each proxy fits: which condition of Theorem 3 fails
python analyze.py random-net --norm layer layer+pn --out DIR     random nets of Definition 1
python analyze.py theory --out DIR                       each theorem: claimed, measured, bound, verdict
python analyze.py conversion                             what convert_norm does to networks of timm, torchvision, ...
python analyze.py curves RUN...                          loss and accuracy of runs, also of running and stopped ones
python analyze.py compare RUNS... --against ROW          several seeds: paired differences with intervals, pictures
python analyze.py report RUNS... --out DIR               the same as one page that any browser shows, offline
python analyze.py results                                the tables and pictures of docs/results.md from docs/results/
python analyze.py plot A/power.json B/power.json --out X.png     several results as one row of power plots
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

import numpy as np
import torch
from torch import Tensor, nn

from analysis.commands import compare, conversion, curves, plot, power, proxy, random_net, report, results, theory
from analysis.commands.networks import Measured
from analysis.images import one_over_f_images, photo_patches, standardized
from analysis.norm_name import norm_label, parse_norm
from backends.host_memory import keep_freed_memory
from configs.command_line import log_to_console
from configs.exit_codes import INTERRUPTED, REFUSED, ExplainedError, explain
from configs.schema import DataConfig
from configs.yaml_file import read_yaml
from datasets import DataError, build_datasets
from datasets.image_folder import read_image_file
from datasets.images.encoded_image import EncodedImage
from experiment.checkpoint import check_norm, checkpoints_of, load_checkpoint
from experiment.ending import end_with
from experiment.foreign_config import config_of_file
from experiment.network import build_network
from experiment.run import DEFAULT_POWER_IMAGES
from experiment.run_folder import RunFolder
from experiment.starting_weights import norm_record
from experiment.weights_file import read_weights
from normact import NormActFactory, convert_norm
from training.pixels import pixel_scaling, scaled_pixels
from training.weights import load_model_state


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command line and return the exit code.

    0 done, 2 wrong arguments or files, 3 data, 4 checkpoint, 130 stopped by Ctrl-C.
    """
    options = parse_arguments(arguments)
    log_to_console(logging.WARNING)
    keep_freed_memory()
    try:
        options.command(options)
    except (ExplainedError, ValueError, OSError) as error:
        code = explain(error)
        return code if isinstance(error, ExplainedError) else REFUSED
    except KeyboardInterrupt:
        print(f"stopped: {options.when_stopped}", file=sys.stderr)
        return INTERRUPTED
    return 0


def parse_arguments(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    power.add(commands, networks_of)
    proxy.add(commands, networks_of)
    random_net.add(commands, image_loader)
    theory.add(commands)
    plot.add(commands)
    conversion.add(commands, import_library)
    curves.add(commands)
    compare.add(commands)
    report.add(commands)
    results.add(commands)
    return parser.parse_args(arguments)


def networks_of(options: argparse.Namespace) -> Iterator[Measured]:
    """Return what the options name: each checkpoint of a run, or a network of a library."""
    return networks_of_run(options) if options.run is not None else network_of_library(options)


def networks_of_run(options: argparse.Namespace) -> Iterator[Measured]:
    """Yield each checkpoint of a run, on the first of its evaluation images."""
    folder = RunFolder(options.run)
    if not folder.config.exists():
        raise ValueError(f"--run {options.run} is not a run folder: it has no {folder.config.name}")
    place = [("--data-dir", "data.dir", options.data_dir)] if options.data_dir is not None else []
    config = config_of_file(read_yaml(folder.config)[0], folder.config, texts=place)
    there = checkpoints_of(folder.checkpoints)
    paths = list(there.values())
    if options.step is not None:
        if options.step not in there:
            known = ", ".join(map(str, there))
            raise ValueError(f"--step {options.step}: this run has checkpoints of {known or 'no step'}")
        paths = [there[options.step]]
    if not paths:
        raise ValueError(f"{folder.checkpoints} holds no checkpoint")
    data = build_datasets(config.data, config.run.seed)
    factory, network = build_network(config, data)
    images = options.num_images or min(config.run.power_images or DEFAULT_POWER_IMAGES, len(data.evaluation))
    if images > len(data.evaluation):
        raise ValueError(f"--num-images {images}: {config.data.name} has {len(data.evaluation)} to evaluate on")
    batch_size = options.batch_size or (config.batch.norm_batch_size if options.form == "training" else 50)
    if options.form == "training" and images % batch_size:
        raise ValueError(
            f"{images} images are not a multiple of the normalization batch {batch_size}; use --num-images "
            f"{images - images % batch_size or batch_size}, or another --batch-size"
        )
    pixels = torch.stack([data.evaluation[index][0] for index in range(images)])
    batches = list(scaled_pixels(pixels, *pixel_scaling(data.mean, data.std)).split(batch_size))
    for path in paths:
        saved = load_checkpoint(path)
        check_norm(saved["norm"], norm_record(factory))
        load_model_state(network, saved["model"])
        epochs = saved["step"] * config.batch.global_batch_size / len(data.train)
        yield Measured(f"step {saved['step']}, epoch {epochs:.2f}", network, batches)


def network_of_library(options: argparse.Namespace) -> Iterator[Measured]:
    """Yield a timm or torchvision network, on images that are made or read."""
    images = image_loader(options.images, options.num_images, options.image_size)(0)
    library, _, name = options.model.partition(":")
    network = build_library_network(library, name)
    if options.weights is not None:
        load_model_state(network, read_weights(options.weights).tensors)
    if options.convert is not None:
        network, report = convert_norm(network, NormActFactory(**parse_norm(options.convert)))
        print(report)
        name = f"{name}, {norm_label(options.convert)}"
    batch_size = options.batch_size or (len(images) if options.form == "training" else 50)
    yield Measured(name, network, list(images.expand(-1, 3, -1, -1).split(batch_size)))


def build_library_network(library: str, name: str) -> nn.Module:
    """Return a network of timm or torchvision with random weights.

    Raises:
        ValueError: another library, one that is not installed, or a name that it does not know.
    """
    if library not in ("timm", "torchvision"):
        raise ValueError(f"--model {library}{name and ':'}{name}: write timm:NAME or torchvision:NAME")
    torch.manual_seed(0)
    try:
        if library == "timm":
            return import_library("timm").create_model(name)
        return import_library("torchvision.models").get_model(name, weights=None)
    except ImportError as error:
        raise ValueError(f"--model {library}:{name} needs the package {library}: pip install {library}") from error
    except (RuntimeError, ValueError) as error:
        listed = "timm.list_models()" if library == "timm" else "torchvision.models.list_models()"
        raise ValueError(f"--model {library}:{name}: {error}; {listed} gives all names") from error


def import_library(name: str) -> Any:
    """Return a library of networks, or a module of one, by its name."""
    importlib.import_module("datasets.images.torchvision_import")  # which most of them need
    return importlib.import_module(name)


def image_loader(source: str, count: int, size: int) -> Callable[[int], Tensor]:
    """Return the function that gives the `count` images of a seed, centred and scaled over the set."""
    if source == "1/f":
        return lambda seed: one_over_f_images(count, size, seed)
    if source == "fashion_mnist":
        return lambda seed: fashion_mnist_images(count, size, seed)
    return lambda seed: photo_patches(source, count, size, seed, read_photo)


def read_photo(path: Path) -> np.ndarray:
    """Return the pixels of a photograph, (H, W, 3) uint8.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return EncodedImage(read_image_file(path), str(path)).pixels()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def fashion_mnist_images(count: int, size: int, seed: int) -> Tensor:
    """Return the centres of evaluation images seed * count to (seed + 1) * count - 1."""
    images = build_datasets(DataConfig(name="fashion_mnist"), 0).evaluation
    first = seed * count
    if first + count > len(images):
        raise ValueError(f"seed {seed} needs {first + count} images and Fashion-MNIST has {len(images)} to evaluate on")
    stack = torch.stack([images[index][0] for index in range(first, first + count)])
    border = (stack.shape[2] - size) // 2
    if border < 0:
        raise ValueError(
            f"images of Fashion-MNIST have {stack.shape[2]} pixels per side; use --image-size {stack.shape[2]} or less"
        )
    return standardized(stack[:, :, border : border + size, border : border + size])


if __name__ == "__main__":
    end_with(main)
