"""A trained network as a file for other programs.

    python export.py RUN --format pt2                      a program of torch.export: RUN/model.pt2
    python export.py RUN --format onnx --fold              an ONNX model; constants moved into convolutions first
    python export.py RUN --format pt2 --checkpoint best --out FILE

The file takes normalized float images, (N, C, H, W) for any N, and gives logits. What has to be done to an image first,
and the names of the classes, are printed and kept in the file. It is then read again and compared with the network.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import List, Optional

from torch import nn

from configs import ConfigError
from configs.atomic_file import replace_file
from configs.command_line import log_to_console
from configs.counted import counted
from configs.exit_codes import EXPLAINED, explain
from configs.output_place import check_output_file
from experiment.ending import end_with
from experiment.exporting import FORMATS, TOLERANCE, export_bytes, largest_difference, run_file, sample_images
from experiment.trained import load_trained
from experiment.weights_file import AVERAGE, BEST, LAST, NEWEST
from normact import fold_for_inference
from training.weights import CheckpointError

IMAGES = 8  # compared


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command line and return the exit code: 0 done, 2 configuration, 4 checkpoint or parity, 74 disk."""
    options = parse_arguments(arguments)
    log_to_console(logging.WARNING)
    try:
        export(options)
        return 0
    except EXPLAINED as error:
        return explain(error)


def parse_arguments(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("run", type=Path, help="a run folder, or a checkpoint")
    add("--format", choices=FORMATS, required=True, help="pt2: torch.export; onnx: ONNX")
    add(
        "--fold",
        action="store_true",
        help="first move what is constant in evaluation into neighbouring layers, exactly",
    )
    add("--checkpoint", choices=(NEWEST, BEST), default=NEWEST, help="of a run folder; best: by data.validation_images")
    add(
        "--weights", choices=(AVERAGE, LAST), help="of a checkpoint; default: their average over time, where it has one"
    )
    add("--out", type=Path, metavar="FILE", help="default: model.pt2 or model.onnx in the run folder")
    return parser.parse_args(arguments)


def export(options: argparse.Namespace) -> None:
    """Write the file, read it again, and compare."""
    path = options.out or (options.run if options.run.is_dir() else options.run.parent) / f"model.{options.format}"
    if path.suffix != f".{options.format}":
        raise ConfigError(f"--out {path}: the name of this format ends in .{options.format}")
    check_output_file(path)  # the default too
    trained = load_trained(options.run, options.checkpoint, options.weights)
    network: nn.Module = trained.network
    print(trained)
    if options.fold:
        network, report = fold_for_inference(trained.network)
        print(report)
    about = {"preprocessing": trained.preprocessing.as_dict(), "class_names": list(trained.class_names)}
    replace_file(path, export_bytes(network, sample_images(trained, 2), options.format, about))
    found = largest_difference(lambda images: run_file(path, images), trained.network, sample_images(trained, IMAGES))
    print(f"written   {path}, {path.stat().st_size / 1e6:.1f} MB")
    print(
        f"input     float32 (N, {trained.preprocessing.channels}, {trained.preprocessing.image_size}, "
        f"{trained.preprocessing.image_size}): {trained.preprocessing}"
    )
    print(
        f"output    logits of {counted(trained.num_classes, 'class', 'classes')}: "
        f"{', '.join(trained.class_names[:3])}, ..."
    )
    print(
        f"parity    largest difference {found['difference']:.1e} from the network, over the logits of {IMAGES} random "
        f"images, which go up to {found['largest']:.1f}"
    )
    if not found["difference"] <= TOLERANCE * max(1.0, found["largest"]):
        raise CheckpointError(f"{path} does not compute what the network computes; do not use it")


if __name__ == "__main__":
    end_with(main)
