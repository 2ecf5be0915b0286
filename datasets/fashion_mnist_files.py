"""Find the four files of Fashion-MNIST, or fetch them once.

Sources, in order: the data folder; the Debian package dataset-fashion-mnist, installed or fetched with apt-get (which
needs no root: the package is unpacked, not installed); torchvision's download.

Several processes may ask at once: they take a lock file in the data folder, the first one fetches and the others find
its files. Files arrive under a temporary name and are moved into place, so a process that was killed leaves no half
file behind under a final name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Callable, Dict, List, Optional

from datasets.errors import DataError
from datasets.fetch_lock import fetch_lock
from datasets.folder import data_folder, missing_data

FILE_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
SUBFOLDERS = (".", "fashion-mnist", "FashionMNIST/raw")
PACKAGE = "dataset-fashion-mnist"
PACKAGE_FOLDER = "usr/share/datasets/fashion-mnist"  # below the root, or below where the package is unpacked
INSTALLED_FOLDER = Path("/", PACKAGE_FOLDER)
COMMAND_SECONDS = 300


def obtain_files(configured: Optional[str]) -> Path:
    """Return a folder that holds the four files, unpacked or as .gz, fetching them into the data folder where needed.

    Args:
        configured: data.dir.

    Raises:
        DataError: no source has them; says what was tried and why each failed.
    """
    folder = data_folder(configured)
    found = find_files(folder)
    if found:
        return found
    reasons = [f"  {folder}: {describe_missing(folder)}"]
    try:
        with fetch_lock(folder, "fashion-mnist"):
            found = find_files(folder) or fetch_files(folder, reasons)
    except OSError as error:
        reasons.append(f"  {folder}: cannot be written to ({error})")
    if found:
        return found
    raise missing_data(
        "fashion_mnist",
        configured,
        f"{', '.join(FILE_NAMES)}, each as it is or with .gz, in the folder or its {' or '.join(SUBFOLDERS[1:])}; "
        f"Debian and Ubuntu have them as the package {PACKAGE}",
        "\n".join(["tried:"] + reasons),
    )


def find_files(folder: Path) -> Optional[Path]:
    """Return the first usual place with all four files: in `folder`, then the installed package's."""
    for place in [folder / subfolder for subfolder in SUBFOLDERS] + [INSTALLED_FOLDER]:
        if not missing_files(place):
            return place
    return None


def missing_files(place: Path) -> List[str]:
    return [name for name in FILE_NAMES if not find_file(place, name).is_file()]


def find_file(place: Path, name: str) -> Path:
    """Return the path of `name` in `place`: unpacked where that exists, else with .gz."""
    path = place / name
    return path if path.is_file() else place / f"{name}.gz"


def describe_missing(folder: Path) -> str:
    """Say why the data folder itself does not do."""
    if not folder.is_dir():
        return "is not a folder" if folder.exists() else "does not exist"
    missing = min((missing_files(folder / subfolder) for subfolder in SUBFOLDERS), key=len)
    return f"lacks {', '.join(missing)}"


def fetch_files(folder: Path, reasons: List[str]) -> Optional[Path]:
    """Try each source; return the folder of the files, or None with a line in `reasons` for each failure."""
    sources: Dict[str, Callable[[Path], Path]] = {f"apt-get, package {PACKAGE}": fetch_package, "torchvision": download}
    for source, fetch in sources.items():
        with tempfile.TemporaryDirectory(prefix=".fashion-mnist-", dir=folder) as temporary:
            try:
                fetched = fetch(Path(temporary))
                missing = missing_files(fetched)
                if missing:
                    raise DataError(f"it lacks {', '.join(missing)}")
            except (DataError, OSError, RuntimeError, subprocess.SubprocessError) as error:
                reasons.append(f"  {source}: {error}")
                continue
            return move_files(fetched, folder / "fashion-mnist")
    return None


def move_files(source: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    for name in FILE_NAMES:
        packed = f"{name}.gz"
        os.replace(source / packed, target / packed)
    return target


def fetch_package(temporary: Path) -> Path:
    """Download and unpack the Debian package; return the folder of its files."""
    for command in ("apt-get", "dpkg-deb"):
        if shutil.which(command) is None:
            raise DataError(f"there is no {command} on this machine")
    run_command(["apt-get", "download", PACKAGE], temporary)
    packages = list(temporary.glob("*.deb"))
    if len(packages) != 1:
        raise DataError(f"apt-get left {len(packages)} packages, expected 1")
    run_command(["dpkg-deb", "-x", packages[0].name, "."], temporary)
    return temporary / PACKAGE_FOLDER


def run_command(command: List[str], folder: Path) -> None:
    """Run `command` in `folder`; a failure is a DataError with the end of what it said."""
    result = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=COMMAND_SECONDS,
        text=True,
        errors="replace",
        check=False,  # its output is part of the error below
    )
    if result.returncode != 0:
        said = " ".join(result.stdout.split()[-40:]) or "no output"
        raise DataError(f"{' '.join(command)} ended with status {result.returncode}: {said}")


def download(temporary: Path) -> Path:
    """Download the files as torchvision does; return their folder."""
    from datasets.images.torchvision_import import torchvision

    torchvision.datasets.FashionMNIST(str(temporary), train=True, download=True)
    return temporary / "FashionMNIST" / "raw"
