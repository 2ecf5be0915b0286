"""JPEG files: two decoders, the same pixels; and decoding no larger than needed."""

import logging
import struct
from typing import Callable, Dict, Tuple

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_images import encoded, smooth_photograph
from PIL import Image

from datasets import DataError
from datasets.images import encoded_image
from datasets.images.encoded_image import EncodedImage, decoder_versions, say_decoder
from datasets.images.native import Window
from datasets.images.transforms import resize, resized_crop

needs_simplejpeg = pytest.mark.skipif(encoded_image.simplejpeg is None, reason="simplejpeg is not installed")


def noisy_photograph(width: int, height: int) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(smooth_photograph(width, height)) + noise, 0, 255).astype(np.uint8))


def both_decoders(content: bytes) -> Tuple[EncodedImage, EncodedImage]:
    """Return the image for simplejpeg, and for Pillow alone."""
    fast = EncodedImage(content, "made.jpg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded_image, "simplejpeg", None)
        slow = EncodedImage(content, "made.jpg")
    assert fast.fast and not slow.fast
    assert (fast.height, fast.width, fast.format) == (slow.height, slow.width, slow.format)
    return fast, slow


@needs_simplejpeg
@given(
    width=st.integers(8, 90), height=st.integers(8, 90), quality=st.integers(5, 100),
    mode=st.sampled_from(["RGB", "L"]), subsampling=st.sampled_from([0, 1, 2]), progressive=st.booleans(),
    shrink=st.sampled_from([1, 2, 4, 8]),
)  # fmt: skip
def test_both_decoders_give_the_same_pixels(width, height, quality, mode, subsampling, progressive, shrink):
    options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
    content = encoded(noisy_photograph(width, height).convert(mode), "JPEG", **options).getvalue()
    fast, slow = (image.pixels(shrink) for image in both_decoders(content))
    assert fast.shape == slow.shape == (-(-height // shrink), -(-width // shrink), 3)
    # equal with the libjpeg-turbo in both pinned packages; 1 is left for other versions, which may round otherwise
    assert np.abs(fast.astype(int) - slow).max() <= 1


def two_pictures() -> bytes:
    """As phones and drones write it: the picture, and a smaller one behind it."""
    pictures = [noisy_photograph(320, 240), smooth_photograph(160, 120)]
    return encoded(pictures[0], "MPO", save_all=True, append_images=pictures[1:]).getvalue()


def with_orientation() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noisy_photograph(320, 240), "JPEG", exif=exif).getvalue()


KINDS: Dict[str, Callable[[], bytes]] = {
    "several pictures": two_pictures,
    "EXIF orientation": with_orientation,
    "RGB": lambda: encoded(noisy_photograph(320, 240), "JPEG", keep_rgb=True).getvalue(),
    "progressive": lambda: encoded(noisy_photograph(320, 240), "JPEG", progressive=True).getvalue(),
    "restart markers": lambda: encoded(noisy_photograph(320, 240), "JPEG", restart_marker_rows=1).getvalue(),
    "gray": lambda: encoded(noisy_photograph(320, 240).convert("L"), "JPEG").getvalue(),
}


@needs_simplejpeg
@pytest.mark.parametrize("content", KINDS.values(), ids=KINDS)
def test_both_decoders_shrink_alike_and_give_the_same_pixels_of_every_kind(content):
    fast, slow = both_decoders(content())
    for size in (224, 100, 50, 20):
        # through the choice of the shrink and the resize, to what a network is given
        crops = [resized_crop(image, Window(16, 32, 200, 256), size).int() for image in (fast, slow)]
        assert (crops[0] - crops[1]).abs().max() <= 1


@needs_simplejpeg
def test_a_12_bit_jpeg_is_refused_whichever_decoder():
    content = bytearray(encoded(noisy_photograph(64, 48), "JPEG").getvalue())
    content[content.index(b"\xff\xc0") + 4] = 12
    for patched in (encoded_image.simplejpeg, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoded_image, "simplejpeg", patched)
            with pytest.raises(DataError, match=r"made\.jpg: cannot be used: "):
                EncodedImage(bytes(content), "made.jpg").pixels()


def test_the_versions_of_the_decoders_are_told():
    assert f"Pillow {PIL.__version__}" in decoder_versions()
    assert ("simplejpeg" in decoder_versions()) == (encoded_image.simplejpeg is not None)


@needs_simplejpeg
def test_the_fast_decoder_is_the_one_that_decodes(monkeypatch):
    image = EncodedImage(encoded(smooth_photograph(40, 30), "JPEG").getvalue(), "made.jpg")
    monkeypatch.setattr(encoded_image, "decode", None)
    assert image.pixels().shape == (30, 40, 3)


def test_windows_choose_the_smallest_decode_that_is_large_enough():
    image = EncodedImage(encoded(smooth_photograph(640, 480), "JPEG").getvalue(), "made.jpg")
    cases = [((480, 640, 224), 2), ((448, 448, 224), 2), ((447, 640, 224), 1), ((480, 640, 64), 4), ((480, 512, 32), 8)]
    for (height, width, size), shrink in cases:
        assert image.largest_shrink(height, width, size) == shrink
    assert EncodedImage(encoded(smooth_photograph(640, 480)).getvalue(), "made.png").largest_shrink(480, 640, 8) == 1


@pytest.mark.parametrize(("shrink", "mean_difference"), [(2, 2.0), (4, 1.4), (8, 1.4)])
def test_a_shrunken_decode_shows_the_same_picture(shrink, mean_difference):
    photograph = noisy_photograph(640, 480)
    image = EncodedImage(encoded(photograph, "JPEG", quality=90).getvalue(), "made.jpg")
    window = Window(16, 32, 448, 512)
    small = resized_crop(image, window, 448 // shrink)
    whole = torch.from_numpy(image.pixels()).permute(2, 0, 1)[:, 16:464, 32:544]
    expected = resize(whole, 448 // shrink, 448 // shrink)
    difference = (small.int() - expected.int()).abs()
    # noise of 12 is averaged over boxes here and over triangles there
    assert 0 < difference.float().mean() < mean_difference, difference.float().mean()
    # a place that is off by one shrunken pixel differs by more: the waves' slope is about 4 levels a pixel
    moved = resize(whole.roll(shrink, 2), 448 // shrink, 448 // shrink)
    assert (small.int() - moved.int()).abs().float().mean() > 1.5 * difference.float().mean()


def test_the_window_in_a_shrunken_image_is_where_it_was():
    pixels = np.zeros((400, 400, 3), dtype=np.uint8)
    pixels[100:200, 200:360] = 255
    image = EncodedImage(encoded(Image.fromarray(pixels), "JPEG", quality=100).getvalue(), "made.jpg")
    assert image.largest_shrink(100, 160, 25) == 4
    inside = resized_crop(image, Window(100, 200, 100, 160), 25)
    assert inside[:, 1:-1, 1:-1].min() > 250  # all white but for ringing at the border
    outside = resized_crop(image, Window(250, 200, 100, 160), 25)
    assert outside.max() < 5


@needs_simplejpeg
def test_what_the_fast_decoder_refuses_is_left_to_pillow():
    content = encoded(noisy_photograph(64, 48), "JPEG").getvalue()
    # stray bytes before the end marker: libjpeg warns, simplejpeg refuses, Pillow reads
    stray = content[:-2] + b"\x00\x01\x02" + content[-2:]
    with pytest.raises(ValueError):
        encoded_image.simplejpeg.decode_jpeg(stray)
    assert np.array_equal(EncodedImage(stray, "made.jpg").pixels(), EncodedImage(content, "made.jpg").pixels())


def test_a_cmyk_jpeg_is_left_to_pillow():
    image = EncodedImage(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG").getvalue(), "made.jpg")
    assert not image.fast
    for shrink in (1, 2):
        # cyan, to within the error of JPEG
        assert np.abs(image.pixels(shrink).reshape(-1, 3).mean(0) - [0, 255, 255]).max() < 4


@pytest.mark.parametrize("share", [0.25, 0.5, 0.99])
def test_a_cut_jpeg_is_refused_and_named_whichever_decoder(share):
    content = encoded(noisy_photograph(200, 150), "JPEG").getvalue()
    for image in both_decoders(content[: int(share * len(content))]) if encoded_image.simplejpeg else ():
        with pytest.raises(DataError, match=r"made\.jpg: cannot be used: .*truncated"):
            image.pixels()


def test_a_jpeg_bomb_is_refused_by_its_header():
    content = bytearray(encoded(Image.new("RGB", (16, 16)), "JPEG").getvalue())
    frame = content.index(b"\xff\xc0")  # marker, length 17, 8 bits, height, width
    content[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(DataError, match=r"bomb\.jpg: cannot be used: .*3600000000 pixels, over the limit"):
        EncodedImage(bytes(content), "bomb.jpg")


def test_a_missing_fast_decoder_is_said_once(monkeypatch, caplog):
    monkeypatch.setattr(encoded_image, "simplejpeg", None)
    say_decoder.cache_clear()
    with caplog.at_level(logging.WARNING):
        say_decoder()
        say_decoder()
    say_decoder.cache_clear()
    assert [record.message for record in caplog.records if "simplejpeg is not installed" in record.message] == [
        "simplejpeg is not installed: Pillow decodes JPEG files, more slowly, to the same pixels"
    ]
