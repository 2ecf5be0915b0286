"""The networks that a command is about: options that name them, and what is given for these options."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple

from torch import Tensor, nn

from analysis.commands.arguments import Commands, add_command
from configs.arguments import output_folder, positive, whole
from configs.output_place import check_output_folder

# Options of one source only, with what they are where they are left out.
_OF_RUN: Dict[str, Any] = {"step": None, "data_dir": None}
_OF_MODEL: Dict[str, Any] = {"weights": None, "convert": None, "images": "1/f", "image_size": 64}
_MODEL_IMAGES = 256


class Measured(NamedTuple):
    """A network to measure, and the batches that it takes."""

    name: str
    network: nn.Module
    batches: List[Tensor]


NetworkSource = Callable[[argparse.Namespace], Iterator[Measured]]


def add_network_command(commands: Commands, name: str, summary: str) -> argparse.ArgumentParser:
    """Return the parser of a command about networks: --run or --model, and what belongs to each."""
    parser = add_command(commands, name, summary)
    parser.formatter_class = argparse.HelpFormatter  # defaults depend on the source
    option = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--run", type=Path, help="a run's folder: all of its checkpoints, on its evaluation images")
    source.add_argument("--model", help="timm:NAME or torchvision:NAME")
    option("--out", type=output_folder, help="folder for the results; default: one in RUN; required with --model")
    option("--step", type=whole(0), help="with --run: only the checkpoint of this step")
    option(
        "--data-dir",
        metavar="DIR|URL",
        help="with --run: folder of its images; the data.dir saved with the run is not used",
    )
    option("--weights", type=Path, help="with --model: a state dict; default: random weights (seed 0)")
    option("--convert", metavar="NORM", help="with --model: replace its norms with this one, e.g. group8+pn")
    option("--images", help="with --model: 1/f (default), fashion_mnist, or the path of a photograph or a folder")
    option("--image-size", type=positive, help="with --model: pixels per side; default: 64")
    option(
        "--num-images",
        type=positive,
        help=f"the first this many; default: of a run as many as its power.jsonl (1000 or all), else {_MODEL_IMAGES}",
    )
    option("--batch-size", type=positive, help="images per forward pass; default: 50")
    return parser


def settle_source(options: argparse.Namespace, folder: str) -> None:
    """Refuse options of the other source, and fill in what was left out.

    Args:
        options: the command line's; what was left out is filled in.
        folder: in a run's, where results go.

    Raises:
        ValueError: as said.
    """
    source, others = ("--run", _OF_MODEL) if options.run is not None else ("--model", _OF_RUN)
    for name in others:
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} has no effect with {source}; leave it out")
    if options.model is not None:
        if options.out is None:
            raise ValueError("--model needs --out, the folder to write to")
        for name, default in {**_OF_MODEL, "num_images": _MODEL_IMAGES}.items():
            setattr(options, name, default if getattr(options, name) is None else getattr(options, name))
    elif options.out is None:
        options.out = options.run / folder
        check_output_folder(options.out)


def title_of(options: argparse.Namespace, measured: Measured) -> str:
    """Return what a picture calls it: the run's folder, or the network."""
    title: str = options.run.resolve().name if options.run is not None else measured.name
    return title


@contextlib.contextmanager
def explained(measured: Measured) -> Iterator[None]:
    """Turn an error of a network's own code into a ValueError with what it was given."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        shape = tuple(measured.batches[0].shape)
        raise ValueError(
            f"{measured.name} could not run on images of shape {shape}: {error}. Give the --image-size that it needs, "
            "or a smaller --batch-size"
        ) from error
