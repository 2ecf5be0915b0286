"""Every kind of image file becomes RGB of the documented value, or is refused."""

import resource
import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from made_images import encoded
from PIL import Image

from datasets import DataError
from datasets.images.decode import FORMATS, decode, read_header


def png(width: int, height: int, bit_depth: int, color_type: int, rows: bytes, before_data: bytes = b"") -> bytes:
    """Return a PNG file around already filtered rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    before = chunk(before_data[:4], before_data[4:]) if before_data else b""
    data = chunk(b"IHDR", header) + before + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 20_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header_before_memory_is_taken(side):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="pixels"):
        decode(BytesIO(png(side, side, 8, 2, bytes(100))))
    # 10,000 x 10,000 RGB pixels would take 300 MB; kilobytes here
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_an_endless_strip_is_refused_and_a_long_image_is_not():
    with pytest.raises(DataError, match="1010 x 10 pixels: one side is more than 100 times"):
        decode(encoded(Image.new("RGB", (1010, 10))))
    assert decode(encoded(Image.new("RGB", (1000, 10)))).size == (1000, 10)


def of_pixels(mode: str, pixels: list) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


def palette_image(**options) -> BytesIO:
    image = of_pixels("P", [0, 1])
    image.putpalette([10, 20, 30, 200, 100, 0])
    return encoded(image, **options)


def tiff(width: int, bits: int, row: bytes, white_is_zero: bool = False, sample_format: int = 1) -> BytesIO:
    """Return a little-endian TIFF file of one uncompressed row of gray samples."""
    tags = [(256, 4, width), (257, 4, 1), (258, 3, bits), (259, 3, 1), (262, 3, 0 if white_is_zero else 1)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 4, 1), (279, 4, len(row)), (339, 3, sample_format)]
    place = 8 + len(row) + len(row) % 2
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return BytesIO(struct.pack("<2sHI", b"II", 42, place) + row.ljust(place - 8, b"\0") + directory)


def twelve_bit_tiff(samples: "list[int]") -> BytesIO:
    """Return two samples in three bytes, the higher bits first."""
    digits = "".join(f"{sample:03x}" for sample in samples)
    return tiff(len(samples), 12, bytes.fromhex(digits + "0" * (len(digits) % 2)))


# half-transparent red on white: 255 * 128/255 + 255 * 127/255 = 255 in red, 127 in the others
MODES = {
    "RGB": (lambda: encoded(of_pixels("RGB", [(1, 2, 3), (4, 5, 6)])), [(1, 2, 3), (4, 5, 6)]),
    "gray": (lambda: encoded(of_pixels("L", [0, 77, 255])), [(0,) * 3, (77,) * 3, (255,) * 3]),
    "1 bit": (lambda: encoded(of_pixels("1", [0, 255])), [(0,) * 3, (255,) * 3]),
    "palette": (palette_image, [(10, 20, 30), (200, 100, 0)]),
    "palette, transparent": (lambda: palette_image(transparency=1), [(10, 20, 30), (255, 255, 255)]),
    "palette, alpha table": (lambda: palette_image(transparency=b"\xff\x00"), [(10, 20, 30), (255, 255, 255)]),
    "RGB, transparent colour": (
        lambda: encoded(of_pixels("RGB", [(1, 2, 3), (4, 5, 6)]), transparency=(4, 5, 6)), [(1, 2, 3), (255,) * 3],
    ),
    "RGBA": (
        lambda: encoded(of_pixels("RGBA", [(255, 0, 0, 0), (255, 0, 0, 128), (255, 0, 0, 255)])),
        [(255, 255, 255), (255, 127, 127), (255, 0, 0)],
    ),
    "LA": (lambda: encoded(of_pixels("LA", [(0, 0), (0, 128), (9, 255)])), [(255,) * 3, (127,) * 3, (9,) * 3]),
    "CMYK": (
        lambda: encoded(of_pixels("CMYK", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255)]), "TIFF"),
        [(255, 255, 255), (0, 255, 255), (0, 0, 0)],
    ),
    "16-bit gray": (
        lambda: BytesIO(png(5, 1, 16, 0, b"\0" + struct.pack(">5H", 0, 128, 129, 32896, 65535))),
        [(0,) * 3, (0,) * 3, (1,) * 3, (128,) * 3, (255,) * 3],
    ),
    "16-bit gray, transparent value": (
        lambda: BytesIO(png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 257, 514), b"tRNS" + struct.pack(">H", 514))),
        [(1,) * 3, (255,) * 3],
    ),
    "16-bit gray PGM": (
        lambda: BytesIO(b"P5 3 1 65535\n" + struct.pack(">3H", 0, 257 * 9, 65535)), [(0,) * 3, (9,) * 3, (255,) * 3],
    ),
    "16-bit gray TIFF": (
        lambda: encoded(Image.fromarray(np.array([[0, 257 * 9, 65535]], dtype=np.uint16)), "TIFF"),
        [(0,) * 3, (9,) * 3, (255,) * 3],
    ),
    "12-bit gray TIFF": (lambda: twelve_bit_tiff([0, 1, 2048, 4095]), [(0,) * 3, (0,) * 3, (128,) * 3, (255,) * 3]),
    "12-bit gray PGM": (
        lambda: BytesIO(b"P5 3 1 4095\n" + struct.pack(">3H", 0, 2048, 4095)), [(0,) * 3, (128,) * 3, (255,) * 3],
    ),
    "10-bit RGB PPM": (lambda: BytesIO(b"P6 1 1 1023\n" + struct.pack(">3H", 0, 512, 1023)), [(0, 128, 255)]),
    "16-bit gray TIFF, white is 0": (
        lambda: tiff(3, 16, struct.pack("<3H", 0, 257 * 9, 65535), white_is_zero=True),
        [(255,) * 3, (246,) * 3, (0,) * 3],
    ),
    "8-bit gray TIFF, white is 0": (
        lambda: tiff(3, 8, bytes([0, 9, 255]), white_is_zero=True), [(255,) * 3, (246,) * 3, (0,) * 3],
    ),
    "1-bit TIFF, white is 0": (
        lambda: tiff(3, 1, bytes([0b01000000]), white_is_zero=True), [(255,) * 3, (0,) * 3, (255,) * 3],
    ),
    "16-bit RGB": (
        lambda: BytesIO(png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0, 255, 256, 511, 32768, 65535))),
        [(0, 0, 1), (1, 128, 255)],
    ),
    "animated GIF, first frame": (
        lambda: encoded(
            of_pixels("L", [5, 250]), "GIF", save_all=True, append_images=[of_pixels("L", [100, 100])]
        ),
        [(5,) * 3, (250,) * 3],
    ),
    "animated WebP, first frame": (
        lambda: encoded(
            of_pixels("RGB", [(1, 2, 3), (250, 0, 9)]), "WEBP", save_all=True, lossless=True,
            append_images=[of_pixels("RGB", [(9, 9, 9), (9, 9, 9)])],
        ),
        [(1, 2, 3), (250, 0, 9)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("file, expected", MODES.values(), ids=MODES)
def test_each_image_mode_becomes_rgb_of_the_documented_value(file, expected):
    image = decode(file())
    assert image.mode == "RGB"
    assert [tuple(pixel) for pixel in np.asarray(image)[0].tolist()] == expected


def test_a_16_bit_ramp_keeps_all_its_256_levels():
    ramp = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in ramp)
    values = np.asarray(decode(BytesIO(png(64, 64, 16, 0, rows))))[:, :, 0]
    # rounding to whole numbers is off by a half at most
    assert np.abs(values - ramp / 257).max() <= 0.5 + 1e-9


def test_cmyk_jpeg_is_converted():
    values = np.asarray(decode(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG")))
    # cyan, to within the error of JPEG
    assert np.abs(values.reshape(-1, 3).mean(0) - [0, 255, 255]).max() < 4


def test_a_cmyk_jpeg_is_taken_as_inverted_with_and_without_adobes_marker():
    content = encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG").getvalue()
    place = content.index(b"\xff\xee")
    length = struct.unpack(">H", content[place + 2 : place + 4])[0]
    without = content[:place] + content[place + 2 + length :]
    assert b"Adobe" in content and b"Adobe" not in without
    assert np.array_equal(np.asarray(decode(BytesIO(content))), np.asarray(decode(BytesIO(without))))


def test_a_12_bit_ramp_keeps_all_its_256_levels():
    rows = [decode(twelve_bit_tiff(list(range(first, first + 64)))) for first in range(0, 4096, 64)]
    values = np.concatenate([np.asarray(row)[0, :, 0] for row in rows])
    # rounding to whole numbers is off by a half at most
    assert np.abs(values - np.arange(4096) * 255 / 4095).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("bits", [10, 14])
def test_depths_that_pillow_does_not_read_are_refused_as_such(bits):
    with pytest.raises(DataError, match=r"^it begins like a TIFF file, but is damaged or of a kind \(bits"):
        decode(tiff(4, bits, bytes(8)))


REFUSALS = {
    "empty": (b"", "^it is empty$"),
    "a web page": (b"<html><body>404", r"^no image of BMP, GIF, JPEG, .*: it begins with b'<html><body>'$"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(50), r"^no image of .*: it begins with b'.*ftypheic'$"),
    "a damaged PNG": (b"\x89PNG\r\n\x1a\n" + bytes(40), "^it begins like a PNG file, but is damaged or of a kind"),
    "a damaged JPEG": (b"\xff\xd8\xff" + bytes(40), "JPEG|marker"),
}


@pytest.mark.parametrize(("content", "message"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_names_the_fault_of_the_file_and_no_object_of_the_program(content, message):
    for read in (decode, read_header):
        with pytest.raises(DataError, match=message) as caught:
            read(BytesIO(content))
        assert "object at" not in str(caught.value)


def test_avif_is_read():
    if "AVIF" not in FORMATS:
        pytest.skip("this Pillow is built without AVIF")
    file = encoded(Image.new("RGB", (16, 8), (200, 30, 40)), "AVIF", quality=100)
    assert np.abs(np.asarray(decode(file)).astype(int) - (200, 30, 40)).max() <= 4  # lossy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.images.decode.FORMATS", ("JPEG",))
        with pytest.raises(DataError, match=r"^it is an AVIF file, which needs Pillow 11\.3"):
            file.seek(0)
            decode(file)


def test_signed_samples_are_refused():
    with pytest.raises(DataError, match="its samples have 32 bits, signs or fractions"):
        decode(tiff(2, 16, struct.pack("<2h", -1, 1), sample_format=2))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_samples_of_32_bits_are_refused(mode):
    with pytest.raises(DataError, match="32 bits"):
        decode(encoded(Image.new(mode, (4, 4)), "TIFF"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_not_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(Image.new("RGB", (8, 4), "red"), "JPEG", exif=exif))
    assert image.size == (8, 4)


def test_an_icc_profile_changes_no_value():
    image = of_pixels("RGB", [(1, 2, 3), (200, 5, 6)])
    assert np.array_equal(np.asarray(decode(encoded(image, icc_profile=b"profile"))), np.asarray(image))
