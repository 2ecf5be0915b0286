"""Ten photographs that the packages scikit-image and scikit-learn carry in their wheels, and where to get them.

Sources, in order: the installed packages; their pinned wheels, fetched with pip and read as the archives they are
(nothing is installed). Each file must have the SHA-256 sum written here, whatever its source.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional

from datasets.errors import DataError

WHEELS = {"skimage": "scikit-image==0.26.0", "sklearn": "scikit-learn==1.9.1"}
# wheels for any machine hold the same images; naming one serves Pythons that these versions no longer support
WHEEL_TARGET = ["--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_28_x86_64"]
WHEEL_TARGET += ["--platform", "manylinux2014_x86_64"]
COMMAND_SECONDS = 300


@dataclass(frozen=True)
class Photo:
    """One photograph.

    Attributes:
        name: of the class that its patches make.
        file: below the folder that holds the packages, as in the wheel.
        sha256: of its content.
    """

    name: str
    file: str
    sha256: str

    @property
    def package(self) -> str:
        return self.file.partition("/")[0]


PHOTOS = (
    Photo(
        "astronaut",
        "skimage/data/astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
    Photo("cat", "skimage/data/chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
    Photo(
        "china", "sklearn/datasets/images/china.jpg", "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29"
    ),
    Photo("coffee", "skimage/data/coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
    Photo(
        "flower",
        "sklearn/datasets/images/flower.jpg",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
    ),
    Photo(
        "galaxies",
        "skimage/data/hubble_deep_field.jpg",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    ),
    Photo(
        "motorcycle",
        "skimage/data/motorcycle_left.png",
        "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    ),
    Photo("retina", "skimage/data/retina.jpg", "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6"),
    Photo("rocket", "skimage/data/rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"),
    Photo("tissue", "skimage/data/ihc.png", "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef"),
)


def obtain_photos() -> Dict[str, bytes]:
    """Return the file of each photograph, by class name.

    Raises:
        DataError: no source has them; says what was tried and why each failed.
    """
    sources: Dict[str, Callable[[str], Dict[str, bytes]]] = {"installed": installed_files, "pip download": wheel_files}
    found: Dict[str, bytes] = {}
    reasons: List[str] = []
    for package, requirement in WHEELS.items():
        for source, read in sources.items():
            try:
                files = read(package)
            except (DataError, OSError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
                reasons.append(f"  {package} ({requirement}), {source}: {error}")
                continue
            found.update(files)
            break
    if len(found) != len(PHOTOS):
        raise DataError("\n".join(["photo_patches: its photographs are not here; tried:"] + reasons))
    return found


def checked(package: str, read: Callable[[str], bytes]) -> Dict[str, bytes]:
    """Return the photographs of a package.

    Raises:
        DataError: one of other content than is written here.
    """
    files = {}
    for photo in PHOTOS:
        if photo.package == package:
            content = read(photo.file)
            if hashlib.sha256(content).hexdigest() != photo.sha256:
                raise DataError(f"{photo.file} is not the expected file: its SHA-256 sum is not {photo.sha256}")
            files[photo.name] = content
    return files


def installed_files(package: str) -> Dict[str, bytes]:
    specification = importlib.util.find_spec(package)  # finds the folder without importing it
    if specification is None or specification.origin is None:
        raise DataError("not installed")
    root = Path(specification.origin).parent.parent
    return checked(package, lambda name: (root / name).read_bytes())


def wheel_files(package: str) -> Dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="photos-") as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", *WHEEL_TARGET, "--dest", folder, WHEELS[package]]
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=COMMAND_SECONDS, check=False,  # its output is part of the error below
        )  # fmt: skip
        wheel: Optional[Path] = next(iter(Path(folder).glob("*.whl")), None)
        if result.returncode != 0 or wheel is None:
            said = " ".join((result.stderr or result.stdout).split()[-40:]) or "no output"
            raise DataError(f"pip ended with status {result.returncode}: {said}")
        with zipfile.ZipFile(wheel) as archive:
            return checked(package, archive.read)
