"""The C++ of datasets/images: the pixels of the other decoders and of torch's resize, to the bit, or none."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Optional

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_faults import faults, files, photograph
from made_images import encoded

from datasets import DataError
from datasets.images import encoded_image, native, transforms
from datasets.images.encoded_image import EncodedImage, decoder_versions
from datasets.images.native import NativeImages, ResizedWindow, Window, build_library, native_images
from datasets.images.transforms import Augmentation, CentreCrop, resize, resize_with_libraries, resized_crop
from datasets.keyed_random import KeyedRandom
from normact.kernels.cpu.native_library import CACHE_VARIABLE, ISA_FLAGS

ROOT = Path(__file__).resolve().parents[2]
can_build = shutil.which(os.environ.get("CXX") or "g++") is not None
has_avx2 = Path("/proc/cpuinfo").exists() and "avx2" in Path("/proc/cpuinfo").read_text()
needs_windows = pytest.mark.skipif(
    not can_build or native.jpeg_prefix() is None, reason="there is no compiler, or no header of libjpeg-turbo"
)
needs_resize = pytest.mark.skipif(
    not (can_build and has_avx2 and transforms.TORCH_RESIZES_BYTES), reason="no compiler, no AVX2, or torch before 2.1"
)


def resized(instructions: str, pixels: np.ndarray, height: int, width: int, mirror: bool = False):
    """Resize the whole of an image."""
    target = ResizedWindow.all_of(pixels.shape[:2], (height, width), mirror)
    return built(instructions).resize(pixels, (0, 0), target)


@lru_cache(maxsize=None)
def built(instructions: str) -> NativeImages:
    return NativeImages(build_library(ISA_FLAGS[instructions]))


def answer(image: EncodedImage, shrink: int, window: Window) -> "np.ndarray | str":
    try:
        return image.window(window, shrink)
    except DataError as error:
        return str(error)


@needs_windows
@settings(max_examples=200)  # edges that a wrong margin shows are one place in many
@given(
    width=st.integers(8, 150), height=st.integers(8, 150), quality=st.integers(3, 100),
    mode=st.sampled_from(["RGB", "L", "CMYK"]), subsampling=st.sampled_from([0, 1, 2, "4:1:1"]),
    progressive=st.booleans(), restarts=st.integers(0, 3), shrink=st.sampled_from([1, 2, 4, 8]),
    place=st.tuples(*4 * [st.floats(0, 1)]),
)  # fmt: skip
def test_a_window_has_the_pixels_of_the_whole_image_there(
    width, height, quality, mode, subsampling, progressive, restarts, shrink, place
):
    options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    content = encoded(
        photograph(width, height).convert(mode), "JPEG", restart_marker_blocks=restarts, **options
    ).getvalue()
    image = EncodedImage(content, "made.jpg")
    rows, columns = -(-height // shrink), -(-width // shrink)
    top, left = int(place[0] * (rows - 1)), int(place[1] * (columns - 1))
    window = Window(top, left, 1 + int(place[2] * (rows - top - 1)), 1 + int(place[3] * (columns - left - 1)))
    expected = image.pixels(shrink)[top : top + window.height, left : left + window.width]
    assert np.array_equal(image.window(window, shrink), expected)
    # and it is the C++ that gave it, of the kinds that it knows
    found = built("native").window(content, (height, width), shrink, window)
    assert (found is not None) == (mode != "CMYK" and not progressive)


@needs_resize
@pytest.mark.parametrize("instructions", ["native", "avx2"])
@given(
    sides=st.tuples(*4 * [st.integers(1, 300)]), right=st.integers(0, 9), mirror=st.booleans(), extreme=st.booleans()
)  # fmt: skip
def test_resizing_gives_torchs_bytes(instructions, sides, right, mirror, extreme):
    height, width, new_height, new_width = sides
    pixels = np.random.default_rng(height).integers(0, 256, (height, width + right, 3), dtype=np.uint8)
    if extreme:  # sums that end at the limits
        pixels = np.where(pixels > 127, np.uint8(255), np.uint8(0))
    part = pixels[:, :width]  # rows that do not touch
    expected = resize_with_libraries(torch.from_numpy(part).permute(2, 0, 1), new_height, new_width)
    found = resized(instructions, part, new_height, new_width, mirror)
    assert found is not None and found.is_contiguous()
    assert torch.equal(found, expected.flip(-1) if mirror else expected)


@needs_resize
@pytest.mark.parametrize("side", [3000, 223, 224, 225, 448])
def test_resizing_gives_torchs_bytes_at_scales_of_data_sets(side):
    pixels = np.random.default_rng(side).integers(0, 256, (side, 500, 3), dtype=np.uint8)
    expected = resize_with_libraries(torch.from_numpy(pixels).permute(2, 0, 1), 224, 224)
    assert torch.equal(resized("native", pixels, 224, 224), expected)


@needs_resize
@pytest.mark.parametrize("lacking", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)])
def test_a_part_of_an_image_that_lacks_a_row_or_column_is_not_resized(lacking):
    pixels = np.zeros((60, 80, 3), dtype=np.uint8)
    target = ResizedWindow((60, 80), (30, 40), Window(10, 10, 10, 20))
    # rows 2 * (10 + .5) -+ 2 and so on: the triangles of the first and the last
    needed = Window(19, 19, 22, 42)
    rows, columns = needed.top + lacking[0], needed.left + lacking[1]
    part = pixels[rows : needed.top + needed.height - lacking[2], columns : needed.left + needed.width - lacking[3]]
    assert built("native").resize(pixels, (0, 0), target) is not None
    assert built("native").resize(pixels[19:41, 19:61], (19, 19), target) is not None
    assert built("native").resize(part, (rows, columns), target) is None
    for window in (Window(-1, 0, 5, 5), Window(0, 36, 5, 5), Window(26, 0, 5, 5)):
        assert built("native").resize(pixels, (0, 0), ResizedWindow((60, 80), (30, 40), window)) is None


def test_what_the_resize_does_not_know_is_left_to_torch():
    if not can_build:
        pytest.skip("there is no compiler")
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    strange = [pixels[..., ::-1], pixels[:, ::-1], pixels[::-1], pixels[..., :1], pixels.astype(np.int16), pixels[:0]]
    for each in strange:
        assert resized("native", each, 4, 4) is None
    assert resized("native", pixels, 0, 4) is None
    if has_avx2:  # which the compiler's default for x86 does not use
        assert not built("baseline").resizes and resized("baseline", pixels, 4, 4) is None


@needs_windows
def test_what_a_network_is_given_is_the_same_with_and_without_the_library(monkeypatch):
    images = [EncodedImage(content, "made.jpg") for content in files()]
    images.append(EncodedImage(encoded(photograph()).getvalue(), "made.png"))
    crops, centres = (Augmentation(96, None, area, True, same_size=False) for area in (0.05, None))
    uses = [lambda image, seed=seed: crops(image, KeyedRandom(seed)) for seed in range(8)]
    uses += [lambda image, seed=seed: centres(image, KeyedRandom(seed)) for seed in range(4)]
    # smaller, larger, and with the window at the border of the resized image
    uses += [CentreCrop(96), CentreCrop(160), CentreCrop(64, 64), CentreCrop(65, 130)]
    found = [use(image) for use in uses for image in images]
    for module in (encoded_image, transforms):
        monkeypatch.setattr(module, "native_images", lambda: None)
    expected = [use(image) for use in uses for image in images]
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


@needs_windows
def test_the_library_is_what_runs(monkeypatch):
    image = EncodedImage(files()[0], "made.jpg")
    monkeypatch.setattr(EncodedImage, "pixels", None)
    if has_avx2:
        monkeypatch.setattr(transforms, "resize_with_libraries", None)
    assert resized_crop(image, Window(10, 20, 90, 100), 64, mirror=True).shape == (3, 64, 64)
    if has_avx2:  # elsewhere the whole image is resized
        assert CentreCrop(64)(image).shape == (3, 64, 64)
    assert decoder_versions().startswith("libjpeg-turbo ")


# Damage is behind the window, so that it alone would not show it.
@needs_windows
@pytest.mark.parametrize("share", [0.4, 0.7, 0.99])
def test_a_file_that_is_cut_below_the_window_is_refused_as_before(share):
    content = files()[0]
    window = Window(0, 0, 16, 60)
    assert built("native").window(content, (120, 160), 1, window) is not None
    image = EncodedImage(content[: int(share * len(content))], "cut.jpg")
    with pytest.raises(DataError, match=r"cut\.jpg: cannot be used: .*truncated"):
        image.window(window)


@needs_windows
@pytest.mark.parametrize(
    "marker, given_by_it", [(0xC0, False), (0xDA, False), (0xD3, True), (0xD9, True), (0x00, True)]
)
def test_a_marker_below_the_window_is_judged_as_before(marker, given_by_it, monkeypatch):
    content = bytearray(files()[0])
    content[-400:-398] = 0xFF, marker
    window = Window(0, 0, 16, 60)
    image = EncodedImage(bytes(content), "marker.jpg")
    assert (built("native").window(bytes(content), (120, 160), 1, window) is not None) == given_by_it
    found = answer(image, 1, window)
    monkeypatch.setattr(encoded_image, "native_images", lambda: None)
    assert np.array_equal(found, answer(image, 1, window))


@needs_windows
def test_a_header_of_another_size_and_windows_beyond_the_image_are_refused():
    content, whole = files()[0], Window(0, 0, 120, 160)
    assert built("native").window(content, (120, 160), 1, whole) is not None
    assert built("native").window(content, (119, 160), 1, Window(0, 0, 119, 160)) is None
    for window in (Window(1, 0, 120, 160), Window(0, 1, 120, 160), Window(-1, 0, 10, 10), Window(0, 0, 60, 81)):
        assert built("native").window(content, (120, 160), 2 if window.width == 81 else 1, window) is None


@needs_windows
@pytest.mark.parametrize("first, count", [(0, 1500), pytest.param(1500, 60_000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of damaged tags
def test_damaged_files_get_the_other_decoders_answer(first, count):
    seen = faults(built("native"), first, count)
    assert min(seen.values()) > count / 10 and len(seen) == 3


def sanitizer() -> Optional[str]:
    """Return the library that has to be loaded first; None where the compiler has none."""
    compiler = shutil.which("g++")
    if compiler is None or platform.system() != "Linux":
        return None
    told = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    path = told.stdout.strip()
    return path if os.path.isabs(path) and os.path.exists(path) else None


@needs_windows
@pytest.mark.skipif(sanitizer() is None, reason="g++ has no address sanitizer here")
def test_damaged_files_touch_no_memory_that_is_not_theirs():
    environment = {**os.environ, "LD_PRELOAD": str(sanitizer()), "ASAN_OPTIONS": "detect_leaks=0", "CXX": "g++"}
    command = [sys.executable, str(ROOT / "tests" / "image_faults.py"), "--sanitized", "--count", "600"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "given: " in process.stdout


@pytest.fixture
def first_use(monkeypatch):
    """As if no image had been decoded in this process."""
    native_images.cache_clear()
    yield
    native_images.cache_clear()


def test_without_a_compiler_the_others_decode_after_one_line(first_use, monkeypatch, caplog, tmp_path):
    for name, value in {"CXX": "", "PATH": "", CACHE_VARIABLE: str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    image = EncodedImage(files()[0], "made.jpg")
    with caplog.at_level(logging.WARNING):
        crops = [resized_crop(image, Window(10, 20, 90, 100), 64) for _ in range(2)]
    assert torch.equal(*crops)
    assert [record.getMessage() for record in caplog.records] == [
        "images are decoded and resized more slowly, to the same pixels, without C++ code: no C++ compiler (g++ or "
        "clang++) was found"
    ]
    assert "libjpeg-turbo" not in decoder_versions()


@needs_resize
def test_without_the_header_files_are_decoded_whole_after_one_line(first_use, monkeypatch, caplog):
    monkeypatch.setattr(native, "PREFIXES", ())
    image = EncodedImage(files()[0], "made.jpg")
    with caplog.at_level(logging.WARNING):
        pixels = [image.window(Window(10, 20, 90, 100)) for _ in range(2)]
    assert np.array_equal(pixels[0], image.pixels()[10:100, 20:120])
    (record,) = caplog.records
    assert "JPEG files are decoded whole" in record.getMessage() and "jpeglib.h" in record.getMessage()
    assert native_images().resizes and "libjpeg-turbo" not in decoder_versions()


def test_a_header_of_another_makers_library_is_not_taken(monkeypatch, tmp_path):
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "jpeglib.h").write_text("int jpeg_read_scanlines();\n")
    monkeypatch.setattr(native, "PREFIXES", (tmp_path,))
    assert native.jpeg_prefix() is None


@needs_resize
def test_memory_that_a_resize_reads_may_be_read_only():
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    assert resized("native", pixels, 4, 4) is not None
    assert resize(torch.zeros(1, 8, 8, dtype=torch.uint8), 4, 4, mirror=True).shape == (1, 4, 4)
