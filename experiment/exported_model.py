"""Networks in files of other programs, called as any network is: what they cannot compute is told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor

from experiment.exported_program import load_program
from experiment.onnx_file import load_session
from experiment.torch_archive import first_line
from training.weights import CheckpointError

Model = Callable[[Tensor], Tensor]
SUFFIXES = (".pt2", ".onnx")


def load_exported(path: Path) -> Model:
    """Return what computes logits from normalized float images, (N, C, H, W), of any number N.

    Raises:
        CheckpointError: no such program; what it returns raises it too, for images that the program cannot take.
        ConfigError: what reads it is not installed.
    """
    return exported_program(path) if path.suffix == ".pt2" else onnx_session(path)


def exported_program(path: Path) -> Model:
    """Return a program of torch.export; one for batches of a fixed size is given full batches."""
    program = load_program(path)

    @torch.no_grad()
    def run(x: Tensor) -> Tensor:
        return outputs_of(path, program.wants, x, lambda: program.module(x))

    return run if program.batch_size is None else padded_to(program.batch_size, run)


def onnx_session(path: Path) -> Model:
    """Return an ONNX model in onnxruntime; one for batches of a fixed size is given full batches."""
    session = load_session(path)
    images = session.get_inputs()[0]
    wants = ", ".join(f"{each.type} ({', '.join(map(str, each.shape))})" for each in session.get_inputs())

    def run(x: Tensor) -> Tensor:
        return outputs_of(
            path, wants, x, lambda: [torch.from_numpy(y) for y in session.run(None, {images.name: x.numpy()})]
        )

    return padded_to(images.shape[0], run) if isinstance(images.shape[0], int) else run


def outputs_of(path: Path, wants: str, x: Tensor, compute: Callable[[], Any]) -> Tensor:
    """Return the logits that an exported model computes.

    Raises:
        CheckpointError: it fails, or has more outputs than one, with what it wants and what it is given.
    """
    try:
        outputs = compute()
    except Exception as error:  # a foreign program runs here: what is raised depends on it
        raise CheckpointError(
            f"{path} cannot compute with these images: it wants {wants}, and is given float32 {tuple(x.shape)} "
            f"({first_line(error)}); export it for such images, or choose the --config of those it was trained on"
        ) from error
    if isinstance(outputs, (list, tuple)) and len(outputs) == 1:
        outputs = outputs[0]
    if not isinstance(outputs, Tensor):
        found = f"{len(outputs)} outputs" if isinstance(outputs, (list, tuple, dict)) else f"a {type(outputs).__name__}"
        raise CheckpointError(f"{path} gives {found}, and logits are one tensor; export the network with these alone")
    return outputs


def padded_to(batch_size: int, model: Model) -> Model:
    """Wrap a model of one batch size for any: in parts, the last one filled with zeros whose outputs are dropped."""

    def run(x: Tensor) -> Tensor:
        outputs = []
        for part in x.split(batch_size):
            filler = part.new_zeros((batch_size - len(part), *part.shape[1:]))
            outputs.append(model(torch.cat([part, filler]))[: len(part)])
        return torch.cat(outputs)

    return run
