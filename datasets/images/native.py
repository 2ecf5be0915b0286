"""The C++ of csrc/: windows of JPEG files, and resizing; built at first use like the layer's kernels.

Windows need the headers and the library of libjpeg-turbo 2.1 or newer (Debian and Ubuntu: libjpeg-turbo's development
package, libjpeg-dev), resizing needs AVX2. What is missing is said once, and the other decoders and torch give the same
pixels. The functions release Python's lock while they run.
"""

from __future__ import annotations

import ctypes
import logging
import math
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch

from normact.kernels.cpu.compiler import BuildError
from normact.kernels.cpu.native_library import NativeLibrary

logger = logging.getLogger(__name__)

SOURCE_FOLDER = Path(__file__).parent / "csrc"
# -O3 alone: the weights of a resize are rounded from doubles, which stay as written.
COMPILE_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off")
# Of the system, where compilers look by themselves; of a conda environment, of what was built by hand, of Homebrew.
SYSTEM = Path("/usr")
PREFIXES = (SYSTEM, Path(sys.prefix), Path("/usr/local"), Path("/opt/homebrew"))
HEADER = "jpeglib.h"


class Window(NamedTuple):
    """A part of an image, in its pixels."""

    top: int
    left: int
    height: int
    width: int


class WindowRequest(ctypes.Structure):
    """As csrc/images.h declares it."""

    _fields_ = [
        ("content", ctypes.c_char_p), ("content_bytes", ctypes.c_int64),
        ("image_height", ctypes.c_int32), ("image_width", ctypes.c_int32), ("shrink", ctypes.c_int32),
        ("top", ctypes.c_int32), ("left", ctypes.c_int32), ("rows", ctypes.c_int32), ("columns", ctypes.c_int32),
        ("output", ctypes.c_void_p),
    ]  # fmt: skip


class ResizeRequest(ctypes.Structure):
    """As csrc/images.h declares it."""

    _fields_ = [
        ("pixels", ctypes.c_void_p), ("row_bytes", ctypes.c_int64), ("first_row", ctypes.c_int32),
        ("first_column", ctypes.c_int32), ("rows", ctypes.c_int32), ("columns", ctypes.c_int32),
        ("image_height", ctypes.c_int32), ("image_width", ctypes.c_int32), ("whole_height", ctypes.c_int32),
        ("whole_width", ctypes.c_int32), ("top", ctypes.c_int32), ("left", ctypes.c_int32), ("height", ctypes.c_int32),
        ("width", ctypes.c_int32), ("mirror", ctypes.c_int32), ("output", ctypes.c_void_p),
    ]  # fmt: skip


@dataclass(frozen=True)
class ResizedWindow:
    """A window of a resized image.

    Attributes:
        image: height and width of the image.
        whole: height and width to which it is resized.
        window: the part of that which is asked for.
        mirror: reverse each of its rows.
    """

    image: Tuple[int, int]
    whole: Tuple[int, int]
    window: Window
    mirror: bool = False

    @classmethod
    def all_of(cls, image: Tuple[int, int], whole: Tuple[int, int], mirror: bool = False) -> ResizedWindow:
        """Return the whole of an image, resized."""
        return cls(image, whole, Window(0, 0, *whole), mirror)

    def source(self) -> Window:
        """Return the part of the image that it is made of, and a pixel more at each side, for rounding."""
        top, bottom = _source_range(self.image[0], self.whole[0], self.window.top, self.window.height)
        left, right = _source_range(self.image[1], self.whole[1], self.window.left, self.window.width)
        return Window(top, left, bottom - top, right - left)


def _source_range(size: int, whole: int, first: int, count: int) -> Tuple[int, int]:
    scale = size / whole
    reach = max(1.0, scale) + 1
    begin, end = scale * (first + 0.5) - reach, scale * (first + count - 0.5) + reach
    return max(0, math.floor(begin)), min(size, math.ceil(end))


class NativeImages:
    """The functions of a built library.

    Attributes:
        window_decoder: the library that decodes windows, with its version; empty where none does.
        resizes: whether `resize` does.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._decode_window, self._resize = library.decode_window, library.resize
        self._decode_window.argtypes = [ctypes.POINTER(WindowRequest)]
        self._resize.argtypes = [ctypes.POINTER(ResizeRequest)]
        library.window_decoder.restype = ctypes.c_char_p
        self.window_decoder = library.window_decoder().decode()
        self.resizes = library.resizes() == 1

    def window(self, content: bytes, size: Tuple[int, int], shrink: int, window: Window) -> Optional[np.ndarray]:
        """Return the pixels of a window of a JPEG file, (height, width, 3), uint8; None for what others must decode.

        Args:
            content: the bytes of the file.
            size: height and width of the image, by its header.
            shrink: 1, 2, 4 or 8.
            window: in the image as the shrink makes it.
        """
        if not self.window_decoder:
            return None
        output = np.empty((window.height, window.width, 3), dtype=np.uint8)
        request = WindowRequest(content, len(content), *size, shrink, *window, output.ctypes.data)
        return output if self._decode_window(request) else None

    def resize(self, pixels: np.ndarray, place: Tuple[int, int], target: ResizedWindow) -> Optional[torch.Tensor]:
        """Return `target`, (3, height, width), as torch's bilinear resize with antialiasing makes it.

        None where it cannot, or where the pixels are not enough.

        Args:
            pixels: (H, W, 3), uint8, of a part of the image; the colours of a pixel and the pixels of a row lie side by
                side.
            place: of their first one in the image: row, column.
            target: the window to make.
        """
        row_bytes, *inner = pixels.strides
        if not self.resizes or pixels.dtype != np.uint8 or pixels.shape[2] != 3 or inner != [3, 1] or row_bytes < 0:
            return None
        top, left, height, width = target.window
        is_inside = min(top, left) >= 0 and top + height <= target.whole[0] and left + width <= target.whole[1]
        if 0 in pixels.shape or min(height, width, *target.image) < 1 or not is_inside:
            return None
        output = torch.empty((3, height, width), dtype=torch.uint8)
        part = (*place, *pixels.shape[:2])
        request = ResizeRequest(
            pixels.ctypes.data, row_bytes, *part, *target.image, *target.whole, *target.window, target.mirror,
            output.data_ptr(),
        )  # fmt: skip
        return output if self._resize(request) else None


def build_library(flags: Optional[Sequence[str]] = None) -> Path:
    """Return path of the compiled library, built first if it is not there.

    Args:
        flags: of the instruction set; None for those that $PROXYNORM_KERNEL_ISA names.

    Raises:
        BuildError: it cannot be built here; the message says why.
    """
    prefix = jpeg_prefix()
    compile_flags: Tuple[str, ...] = COMPILE_FLAGS
    link_flags: Tuple[str, ...] = ()
    built_for: Tuple[str, ...] = ()
    if prefix is not None:
        include, libraries = prefix / "include", prefix / "lib"
        compile_flags, link_flags = (*COMPILE_FLAGS, "-DWITH_JPEG"), ("-ljpeg",)
        # Debian keeps this one, which names the version, in a folder of the processor's kind
        configurations = [*include.glob("jconfig.h"), *include.glob("*/jconfig.h")]
        built_for = tuple(path.read_text(errors="replace") for path in sorted(configurations))
        if prefix != SYSTEM:
            compile_flags = (*compile_flags, f"-I{include}")
            link_flags = (f"-L{libraries}", f"-Wl,-rpath,{libraries}", *link_flags)
    return NativeLibrary(
        name="normact_images.so",
        folder=SOURCE_FOLDER,
        title="its image decoder",
        duration="a few seconds",
        cache_prefix="images",
        compile_flags=compile_flags,
        link_flags=link_flags,
        built_for=built_for,
    ).build(flags)


def jpeg_prefix() -> Optional[Path]:
    """Where a libjpeg that decodes windows is installed with its headers; other makers' has none of the calls."""
    for prefix in PREFIXES:
        header = prefix / "include" / HEADER
        if header.is_file() and "jpeg_crop_scanline" in header.read_text(errors="replace"):
            return prefix
    return None


@lru_cache(maxsize=None)
def native_images() -> Optional[NativeImages]:
    """Return this process's library, built and loaded at the first call; None, with one warning, if it cannot be."""
    try:
        native = NativeImages(build_library())
    except (BuildError, OSError) as error:
        logger.warning("images are decoded and resized more slowly, to the same pixels, without C++ code: %s", error)
        return None
    if not native.window_decoder:
        logger.warning(
            "JPEG files are decoded whole, more slowly, to the same pixels: there is no header %s of libjpeg-turbo "
            "2.1 or newer (Debian, Ubuntu: apt-get install libjpeg-dev)",
            HEADER,
        )
    return native
