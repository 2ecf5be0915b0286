"""A trained network as a file for other programs: a program of torch.export, or an ONNX model."""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any, Callable, Dict

import torch
from torch import Tensor, nn

from configs import ConfigError
from experiment.exported_program import load_program
from experiment.onnx_file import load_session
from experiment.trained import Trained

FORMATS = ("pt2", "onnx")
INPUT, OUTPUT = "images", "logits"
# Float32 through tens of layers, whose sums exported and folded operations make in another order: relative to the
# largest logit.
TOLERANCE = 1e-3


def export_bytes(network: nn.Module, images: Tensor, format: str, about: Dict[str, Any]) -> bytes:
    """Return the file of a network that takes batches of any size.

    Args:
        network: in evaluation.
        images: (N, C, H, W), N >= 2: the form of its input.
        format: one of FORMATS.
        about: kept in the file for its users: metadata of ONNX, extra/about.json in .pt2.

    Raises:
        ConfigError: this torch cannot export, or a package is missing.
    """
    try:
        export = importlib.import_module("torch.export")
        dims = ({0: export.Dim("batch", min=1, max=2**16)},)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"torch {torch.__version__} has no torch.export for this; use the versions of requirements.txt"
        ) from error
    if format == "pt2":
        buffer = io.BytesIO()
        program = export.export(network, (images,), dynamic_shapes=dims)
        export.save(program, buffer, extra_files={"about.json": json.dumps(about)})
        return buffer.getvalue()
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # of torch's own structures
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells each of its steps
    try:
        exported = torch.onnx.export(
            network,
            (images,),
            dynamo=True,
            verbose=False,
            dynamic_shapes=dims,
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
    except ImportError as error:
        raise ConfigError(f"ONNX needs the package {error.name}; pip install -r requirements-dev.txt") from error
    assert exported is not None  # of dynamo=True
    model = exported.model_proto
    for key, value in about.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    return bytes(model.SerializeToString())


def run_file(path: Path, images: Tensor) -> Tensor:
    """Return what an exported file computes, read as any other program's file is."""
    if path.suffix == ".onnx":
        session = load_session(path)
        return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    with torch.no_grad():
        output: Tensor = load_program(path).module(images)
    return output


def largest_difference(computed: Callable[[Tensor], Tensor], network: nn.Module, images: Tensor) -> Dict[str, float]:
    """max |computed(images) - network(images)|, and max |network(images)|."""
    with torch.no_grad():
        expected = network(images)
    return {"difference": float((computed(images) - expected).abs().max()), "largest": float(expected.abs().max())}


def sample_images(trained: Trained, count: int) -> Tensor:
    """Random pixels, preprocessed: the form of what the network takes. Shape: -> (count, C, H, W)."""
    size = trained.preprocessing.image_size
    generator = torch.Generator().manual_seed(0)
    shape = (count, trained.preprocessing.channels, size, size)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return trained.inputs(pixels)
