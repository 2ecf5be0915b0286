"""Executables on disk: what save(), load() and loadExecutable() exchange.

The emulator has nothing compiled to keep: a file holds the form of the inputs, the options, and, where asked for, the
model, its optimizer and the state of the generator.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from typing import Any, Dict, Optional

from .._logging import logger
from ..version import __version__

_HEADER = b"poptorch emulator executable\n"


def write_executable(path: str, content: Dict[str, Any]) -> None:
    """Write a file; a folder is given a file named model.poptorch, and missing folders are made."""
    folder = os.path.dirname(path)
    if folder and os.path.exists(folder) and not os.path.isdir(folder):
        raise AssertionError(f"Destination folder {folder} is not a directory")
    if folder:
        os.makedirs(folder, exist_ok=True)
    if os.path.isdir(path):
        logger.warning("save(): %s is a directory, saving model to %s", path, os.path.join(path, "model.poptorch"))
        path = os.path.join(path, "model.poptorch")
    with open(path, "wb") as file:
        file.write(_HEADER)
        pickle.dump({"version": __version__, **content}, file, protocol=4)


def read_executable(path: str) -> Dict[str, Any]:
    """Read what write_executable() wrote. Only for files of a trusted source: they are pickles.

    Raises:
        AssertionError: another kind of file, or one of another version.
    """
    with open(path, "rb") as file:
        if file.readline() != _HEADER:
            raise AssertionError(f"Invalid file {path}: it was not written by the emulator")
        content: Dict[str, Any] = pickle.load(file)
    if content["version"] != __version__:
        raise AssertionError(f"Invalid file {path}: version {content['version']} is not {__version__}")
    return content


def note_in_cache(folder: str, model_text: str) -> None:
    """Leave one file per model in the cache folder, as a compiler would; it holds nothing that could be loaded.

    Raises:
        AssertionError: the folder cannot be written to.
    """
    os.makedirs(folder, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise AssertionError(f"Cache folder {folder} is not writable")
    name = hashlib.sha256(model_text.encode()).hexdigest()[:16]
    with open(os.path.join(folder, f"{name}.emulated"), "w") as file:
        file.write("The emulator compiles nothing.\n")


def require_model(path: str, model: Optional[Any]) -> None:
    """Raise AssertionError for a file without a model."""
    if model is None:
        raise AssertionError(
            f"{path} is a valid PopTorch file but was created with 'export_model=False': wrap the model with "
            f'poptorch.inferenceModel or poptorch.trainingModel and call loadExecutable("{path}") on the result.'
        )
