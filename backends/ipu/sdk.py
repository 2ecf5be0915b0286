"""Which PopTorch is here: Graphcore's, which comes with the Poplar SDK, or this repository's emulator of it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Optional

from backends.errors import DeviceError

EMULATOR = Path(__file__).resolve().parents[2] / "emulator"
_INSTALL = (
    "install the Poplar SDK 3.4 with its PopTorch and popdist wheels and source its enable scripts "
    "(requirements-ipu.txt has the other packages), or use device.name ipu_emulator, cpu or cuda"
)


def has_sdk() -> bool:
    """Whether Graphcore's PopTorch can be imported."""
    folder = _poptorch_folder()
    return folder is not None and not _holds_emulator(folder)


def require_sdk(name: str) -> None:
    """Refuse to run on `name`, ipu or ipu_model, without Graphcore's PopTorch.

    Raises:
        DeviceError: none is installed, or the emulator is in its place.
    """
    folder = _poptorch_folder()
    if folder is None:
        raise DeviceError(f"device.name {name}: PopTorch is not installed; {_INSTALL}")
    if folder == EMULATOR:
        raise DeviceError(
            f"device.name {name} needs Graphcore's PopTorch, but {EMULATOR} comes first on the path; "
            f"take it off PYTHONPATH and {_INSTALL}"
        )
    if _holds_emulator(folder):
        raise DeviceError(
            f"device.name {name} needs Graphcore's PopTorch, but normact-poptorch-emulator is installed in its place; "
            f"uninstall it and {_INSTALL}"
        )


def require_emulator() -> None:
    """Put the emulator's `poptorch` and `popdist` on the path.

    Raises:
        DeviceError: Graphcore's PopTorch is installed: a program that holds parts of both would be neither.
    """
    if has_sdk():
        raise DeviceError(
            f"device.name ipu_emulator: Graphcore's PopTorch is installed in {_poptorch_folder()}; use device.name "
            "ipu_model to run without hardware, or an environment without the SDK"
        )
    if str(EMULATOR) not in sys.path:
        sys.path.insert(0, str(EMULATOR))


def _holds_emulator(folder: Path) -> bool:
    """Whether `poptorch` in this folder is the emulator, of this repository or installed by itself."""
    return folder == EMULATOR or (folder / "poptorch_emulator").is_dir()


def _poptorch_folder() -> Optional[Path]:
    """Return the folder that holds the package `poptorch`."""
    found = importlib.util.find_spec("poptorch")
    return None if found is None or found.origin is None else Path(found.origin).resolve().parent.parent
