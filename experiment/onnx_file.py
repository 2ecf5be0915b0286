"""Models in ONNX files that are not trusted: what they name outside of themselves is looked at before it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

from configs import ConfigError
from configs.bounded_file import read_bounded
from experiment.manifest import MAX_CHECKPOINT_BYTES
from experiment.torch_archive import first_line
from training.weights import CheckpointError


def load_session(path: Path) -> Any:
    """Return the onnxruntime.InferenceSession of a file, on the CPU.

    Weights may lie in other files, which must be regular ones in the folder of the model itself: else a model could
    have any file of this machine read, or any address of memory (which onnxruntime takes as the name of a file).

    Raises:
        ConfigError: onnx or onnxruntime is not installed.
        CheckpointError: a file that is missing, no ONNX model, or that names weights elsewhere.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise ConfigError(f"{path} needs the package {error.name}; pip install -r requirements-dev.txt") from error
    try:
        data = read_bounded(path, MAX_CHECKPOINT_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read as an ONNX model: {error.strerror}") from error
    try:
        model = onnx.load_model_from_string(data)
        external = [tensor for tensor in _tensors(model) if tensor.external_data]
        for tensor in external:
            _check_location(path, tensor)
        # Without files beside it, the bytes that were looked at are the bytes that are run.
        return onnxruntime.InferenceSession(str(path) if external else data, providers=["CPUExecutionProvider"])
    except Exception as error:  # unknown bytes are read here: what is raised depends on them
        raise CheckpointError(f"{path} cannot be read as an ONNX model: {first_line(error)}") from error


def _tensors(message: Any) -> Iterator[Any]:
    """Yield every TensorProto in a message: in initializers, attributes, sparse tensors, functions and subgraphs."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for item in value if hasattr(value, "add") else [value]:
            if field.message_type.full_name == "onnx.TensorProto":
                yield item
            else:
                yield from _tensors(item)


def _check_location(path: Path, tensor: Any) -> None:
    told = {entry.key: entry.value for entry in tensor.external_data}
    location = told.get("location", "")
    beside = path.parent / location
    if "/" in location or "\\" in location or location in ("", ".", "..") or beside.is_symlink():
        raise ValueError(
            f"its weights {tensor.name!r} are to be read from {location!r}; expected a file in the model's own folder"
        )
    end = int(told.get("offset", 0)) + int(told.get("length", 0))
    if not beside.is_file() or not 0 <= int(told.get("offset", 0)) <= end <= beside.stat().st_size:
        raise ValueError(f"its weights {tensor.name!r} are bytes up to {end:,} of {beside}, which are not there")
