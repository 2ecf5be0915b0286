"""Accuracy of trained weights or of an exported model, on any data set.

    python evaluate.py runs/fashion_rn20_gn8pn                      the newest checkpoint of a run, on its own data set
    python evaluate.py runs/fashion_rn20_gn8pn --checkpoint best    the best one by data.validation_images
    python evaluate.py runs/fashion_rn20_gn8pn --split train        the training images, without augmentation
    python evaluate.py runs/fashion_rn20_bn --reestimate-statistics     batch norm's statistics re-estimated
    python evaluate.py step_00001404.pt --set data.dir=DIR         one checkpoint; --set changes its configuration.
                                                                   Where images are, the command says alone, or DATA_DIR
    python evaluate.py runs/fashion_rn20_gn8pn --image cat.jpg      what it takes a picture for
    python evaluate.py resnetv2_50.safetensors --config rn50_bn    a state dict of this program, timm or torchvision
    python evaluate.py model.pt2 --config fashion_rn20_gn8pn        a program of torch.export
    python evaluate.py model.onnx --config fashion_rn20_gn8pn       with onnxruntime

Every image counts exactly once. A model is given normalized float images, (N, C, H, W), and gives logits. The result is
one JSON object: top1, top5, loss, ece, each class, the confusion matrix; `--picture` draws that.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, SequentialSampler
from tqdm import tqdm

from analysis.confusion import plot_confusion
from backends.image_loader import build_loader
from configs import Config, ConfigError, load_config
from configs.arguments import output_file, positive
from configs.atomic_file import replace_text
from configs.command_line import log_to_console
from configs.counted import counted
from configs.exit_codes import EXPLAINED, explain
from configs.picture_file import check_picture
from datasets import DataSets, EvaluationImages, build_datasets
from datasets.data_sets import PlainTrainingImages
from experiment.classify import classify, guesses_text
from experiment.ending import end_with
from experiment.exported_model import SUFFIXES, Model, load_exported
from experiment.foreign_config import config_of_file
from experiment.guarded_loading import explained_loading, guarded
from experiment.measurement import reestimate
from experiment.network import build_network
from experiment.starting_weights import place_weights
from experiment.trained import load_trained
from experiment.weights_file import AVERAGE, BEST, LAST, NEWEST, SavedWeights, read_weights
from training.evaluation import Evaluation
from training.pixels import pixel_scaling, scaled_pixels
from training.weights import CheckpointError


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command line and return the exit code: 0 done, 2 configuration, 3 data, 4 checkpoint, 74 disk."""
    options = parse_arguments(arguments)
    log_to_console(logging.WARNING)
    try:
        if options.image is not None:
            print_classes(options)
            return 0
        report, class_names = evaluate(options)
        text = as_json(report)
        if options.out is None:
            print(text, end="")
        else:
            replace_text(options.out, text)
            print(f"{options.model}: top-1 {report['top1']:.4f} of {counted(report['images'], 'image')}; {options.out}")
        if options.picture is not None:
            title = f"{options.model}: top-1 {100 * report['top1']:.2f} %"
            plot_confusion(report["confusion"], class_names, title, options.picture)
        return 0
    except EXPLAINED as error:
        return explain(error)


def as_json(report: Dict[str, Any]) -> str:
    """Return the report as one JSON object with a line per list entry: a class, or a row of the confusion matrix."""
    lines = []
    for key, value in report.items():
        text = json.dumps(value)
        if isinstance(value, list):
            text = "[\n    " + ",\n    ".join(json.dumps(entry) for entry in value) + "\n  ]"
        lines.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def parse_arguments(arguments: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("model", type=Path, help="a run folder, a checkpoint, a state dict (also timm's, torchvision's), .pt2 or .onnx")
    add("--config", metavar="NAME|PATH", help="network and data; default: those in the checkpoint")
    add(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one value; null leaves it out; repeatable",
    )
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of a network; auto: a GPU if there is one")
    add(
        "--checkpoint",
        choices=(NEWEST, BEST),
        default=NEWEST,
        help="of a run folder; best: by data.validation_images; default: %(default)s",
    )
    add("--weights", choices=(AVERAGE, LAST), help="of a file with both; default: their average over time")
    add(
        "--split",
        choices=("eval", "validation", "train"),
        default="eval",
        help="images to evaluate; validation: those held out; training images unaugmented",
    )
    add(
        "--reestimate-statistics",
        action="store_true",
        help="use batch norm statistics re-estimated over run.reestimation_images training images",
    )
    add("--image", type=Path, nargs="+", metavar="FILE", help="print the most probable classes of these images instead")
    add("--batch-size", type=positive, default=100, help="images in one forward pass")
    add("--out", type=output_file, metavar="FILE.json", help="where the result goes; default: printed")
    add("--picture", type=output_file, metavar="FILE.png", help="draw the confusion matrix")
    return parser.parse_args(arguments)


def evaluate(options: argparse.Namespace) -> Tuple[Dict[str, Any], Tuple[str, ...]]:
    """Return the report on all evaluation images, and the names of their classes."""
    if options.picture is not None:
        check_picture(options.picture)
    is_exported = options.model.suffix in SUFFIXES
    check_execution(options, is_exported)
    if options.reestimate_statistics and is_exported:
        raise ConfigError(f"--reestimate-statistics: those of {options.model.suffix} files are fixed; leave it out")
    if is_exported and (options.checkpoint == BEST or options.weights is not None):
        raise ConfigError(f"--checkpoint, --weights: {options.model.suffix} files hold one network; leave them out")
    saved = None if is_exported else read_weights(options.model, options.checkpoint, options.weights)
    config = choose_config(options, saved)
    data = build_datasets(config.data, config.run.seed)
    model = network_with(saved, config, data, options) if saved is not None else load_exported(options.model)
    images = images_of(options.split, data)
    batches = BatchSampler(SequentialSampler(images), options.batch_size, drop_last=False)
    loader = build_loader(images, batches, config.data.workers)
    scaling = pixel_scaling(data.mean, data.std)
    evaluation = Evaluation(data.num_classes)
    for pixels, labels in tqdm(guarded(loader), total=len(loader), disable=None):
        try:
            evaluation.add(model(scaled_pixels(pixels, *scaling)), labels)
        except ValueError as error:  # another number of classes, or outputs that are not finite
            raise CheckpointError(f"{options.model} on {config.data.name}: {error}") from error
    described = {
        "model": str(options.model),
        **({"weights": "exported"} if saved is None else describe_weights(saved)),
        "statistics": "re-estimated" if options.reestimate_statistics else "as saved",
        "data": config.data.name,
        "split": options.split,
        "device": "cpu" if is_exported else str(chosen_device(options)),
        "precision": "as exported" if is_exported else "float32",
    }
    return {**described, **evaluation.report(data.class_names)}, data.class_names


def describe_weights(saved: SavedWeights) -> Dict[str, Any]:
    """Return which weights of which file they are, and what showed that they are whole."""
    checkpoint = None if saved.step is None else saved.path.name
    known = {"checkpoint": checkpoint, "step": saved.step, "weights": saved.which}
    known.update({"entry": saved.entry, "checked_by": saved.checked_by})
    return {key: value for key, value in known.items() if value is not None}


def print_classes(options: argparse.Namespace) -> None:
    """Print the five most probable classes of each image that was named."""
    for option, value in (("--config", options.config), ("--out", options.out), ("--picture", options.picture)):
        if value is not None:
            raise ConfigError(f"{option} has no effect with --image; leave it out")
    if options.reestimate_statistics or options.split != "eval" or options.device == "cuda":
        raise ConfigError("--reestimate-statistics, --split and --device have no effect with --image; leave them out")
    trained = load_trained(options.model, options.checkpoint, options.weights, options.set)
    print(trained)
    for path, guesses in zip(options.image, classify(trained, options.image)):
        print(guesses_text(path, guesses))


def images_of(split: str, data: DataSets) -> Union[EvaluationImages, PlainTrainingImages]:
    """Return the images of a split, unaugmented.

    Raises:
        ConfigError: no images were held out.
    """
    if split == "train":
        return data.plain_training_images(len(data.train))
    if split == "eval":
        return data.evaluation
    if data.validation is None:
        raise ConfigError("--split validation: no images were held out; data.validation_images says how many")
    return data.validation


def choose_config(options: argparse.Namespace, saved: Optional[SavedWeights]) -> Config:
    """Return the configuration that was named, or else the checkpoint's, with the overrides.

    Where the checkpoint had its data is left out.
    """
    if options.config is not None:
        return load_config(options.config, options.set)
    if saved is None or saved.config is None:
        raise ConfigError(f"{options.model} does not say what network and data it belongs to; add --config NAME")
    return config_of_file(saved.config, saved.path, options.set)


def check_execution(options: argparse.Namespace, is_exported: bool) -> None:
    """Refuse a way of executing that this command does not have.

    Raises:
        ConfigError: as said.
    """
    for override in options.set:
        if override.startswith(("device.", "ipu.")):
            raise ConfigError(
                f"--set {override} has no effect here: networks are evaluated in float32 on the CPU or a GPU; "
                "use --device cpu or --device cuda"
            )
    if options.device == "cuda" and is_exported:
        raise ConfigError(f"--device cuda: {options.model.suffix} files run on the CPU here; leave it out")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: no CUDA device is available; use --device cpu")


def chosen_device(options: argparse.Namespace) -> torch.device:
    is_gpu = options.device == "cuda" or (options.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if is_gpu else "cpu")


def network_with(saved: SavedWeights, config: Config, data: DataSets, options: argparse.Namespace) -> Model:
    """Return the network of a configuration with saved weights, computing in float32.

    Raises:
        ConfigError: statistics are to be re-estimated, but there are none, or no images for it.
    """
    device = chosen_device(options)
    factory, network = build_network(config, data)
    place_weights(network, factory, saved, data.class_names)
    network.to(device).eval()
    if options.reestimate_statistics:
        if not factory.uses_batch_norm:
            raise ConfigError(f"--reestimate-statistics: norm {config.norm.name} has no statistics; leave it out")
        if not config.run.reestimation_images:
            raise ConfigError("--reestimate-statistics needs images; add --set run.reestimation_images=10000")
        with explained_loading():
            reestimate(network, config, data)

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        return network(x.to(device)).float().cpu()

    return run


if __name__ == "__main__":
    end_with(main)
