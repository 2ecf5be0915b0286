"""Programs of torch.export, from untrusted files: checked, and rewritten in memory for torch to read.

torch.export.load unpickles anything, loads shared libraries, and evaluates texts as Python. So it is never given the
file: it is given an archive made here, of the weights, the constants and the checked graph.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional

import torch
from torch import nn

from configs.bounded_file import read_bounded
from experiment.exported_graph import checked_graph, checked_words
from experiment.manifest import MAX_CHECKPOINT_BYTES
from experiment.torch_archive import first_line, load_tensors, read_records
from training.weights import CheckpointError

_GRAPH = "models/model.json"
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"
_PAYLOADS = {
    "data/weights/model_weights_config.json": re.compile(r"weight_\d+", re.ASCII),
    "data/constants/model_constants_config.json": re.compile(r"tensor_\d+", re.ASCII),
}
# What torch writes about the archive itself, and texts for programs that ask for them: not needed here.
_ABOUT = re.compile(r"archive_format|archive_version|byteorder|\.format_version|\.storage_alignment|\.data/.*|extra/.*")


class Program(NamedTuple):
    """A network of a file, on the CPU.

    Attributes:
        module: computes it.
        batch_size: None for any.
        wants: its inputs, in words.
    """

    module: nn.Module
    batch_size: Optional[int]
    wants: str


def load_program(path: Path) -> Program:
    """Return the network in a file of torch.export.save.

    No code of the file is run, and nothing of it unpickled but tensors.

    Raises:
        CheckpointError: a file that is missing, torn, no such program, or that holds more than operators on tensors.
    """
    try:
        data = read_bounded(path, MAX_CHECKPOINT_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read as an exported program: {error.strerror}") from error
    try:
        archive = rewritten(read_records(data))  # before the import, which takes seconds
        from torch.export.pt2_archive._package import load_pt2  # there since torch 2.8

        # torch.export.load calls this, and unpickles what this refuses.
        program = load_pt2(archive).exported_programs["model"]
        inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
        batch_size = inputs[-1].meta["val"].shape[0]
        wants = ", ".join(
            _form(node.meta["val"]) for node in inputs if node.name in program.graph_signature.user_inputs
        )
        return Program(program.module(), batch_size if isinstance(batch_size, int) else None, wants)
    except Exception as error:  # unknown bytes are read here: what is raised depends on them and on torch's version
        raise CheckpointError(f"{path} cannot be read as an exported program: {first_line(error)}") from error


def _form(value: Any) -> str:
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    sizes = ", ".join(str(size) if isinstance(size, int) else "N" for size in value.shape)
    return f"{str(value.dtype).replace('torch.', '')} ({sizes})"


def rewritten(records: Dict[str, bytes]) -> io.BytesIO:
    """Return an archive for torch.export.load with what a forward pass needs of `records`.

    Raises:
        ValueError: records that are missing, or of a kind that is not known here; RefusedError, GraphError.
    """
    if "serialized_exported_program.json" in records:
        raise ValueError("it was written by torch 2.7 or older; export it again with today's torch")
    missing = [name for name in (_GRAPH, *_PAYLOADS) if name not in records]
    if missing:
        raise ValueError(f"it lacks the record {missing[0]}; torch.export.save writes one program, called model")
    kept = {"archive_format": b"pt2", "archive_version": records.get("archive_version", b"0"), ".data/version": b"6\n"}
    kept.update({"byteorder": records.get("byteorder", b"little"), _GRAPH: checked_graph(records[_GRAPH])})
    for name, pattern in _PAYLOADS.items():
        kept.update(_payload(records, name, pattern))
    if records.get(_SAMPLE_INPUTS):
        load_tensors(records[_SAMPLE_INPUTS])  # they are not needed; a program that hides code in them is refused
    kept[_SAMPLE_INPUTS] = b""
    unknown = [name for name in records if name not in kept and not _ABOUT.fullmatch(name)]
    if unknown:
        raise ValueError(f"its record {unknown[0]!r} is neither graph nor tensors: refused, nothing was run")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in kept.items():
            archive.writestr(f"program/{name}", content)
    buffer.seek(0)
    return buffer


def _payload(records: Dict[str, bytes], name: str, pattern: "re.Pattern[str]") -> Dict[str, bytes]:
    """Return the record `name`, which tells what each tensor of its folder is, and those tensors."""
    folder = name.rpartition("/")[0]
    config = checked_words(records[name])
    kept = {name: json.dumps(config).encode()}
    for entry in config["config"].values():
        file_name = entry["path_name"]
        if not pattern.fullmatch(file_name):
            raise ValueError(f"its record {folder}/{file_name} is not a tensor: refused, nothing was run")
        content = records[f"{folder}/{file_name}"]
        if entry["use_pickle"]:  # torch unpickles it without a guard: it is given what this process pickles
            buffer = io.BytesIO()
            torch.save(load_tensors(content), buffer)
            content = buffer.getvalue()
        elif not content and all(size["as_int"] for size in entry["tensor_meta"]["sizes"]):
            raise ValueError(f"its record {folder}/{file_name} is empty, and claims to be a tensor that is not")
        kept[f"{folder}/{file_name}"] = content
    return kept
