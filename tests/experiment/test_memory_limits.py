"""Small files that claim to be large: each reader judges them before it takes memory. Peaks of real processes."""

from __future__ import annotations

import gzip
import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Callable, Dict, List, Sequence, Tuple

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
MIB = 1 << 20
GROWN = 600 * MIB  # what a bomb would grow to; small enough to make, and far over what is allowed
REFUSED_MIB = 100  # what refusing may take: the file's own bytes, a parser's buffers, modules that are imported late
# An image of 79 megapixels: its own pixels in the mode of the file, and the array that is given. Before strips: 1,209.
DECODED_MIB = 760

# One process reads all of them: a peak only grows, so that no reading can hide behind another.
MEASURE = """
import json, resource, sys
from pathlib import Path
for call in json.load(open(sys.argv[1])):
    exec(call["imports"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        eval(call["call"])
        said = "read"
    except Exception as error:
        said = type(error).__name__ + ": " + str(error)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(json.dumps([said, grown]), flush=True)
"""


def measured(folder: Path, calls: Sequence[Tuple[str, str]]) -> List[Tuple[str, int]]:
    """Return what a process of its own says to each call, and the MiB by which its peak grows in it.

    Args:
        folder: for files.
        calls: what is imported, and what is called.
    """
    file = folder / "calls.json"
    file.write_text(json.dumps([{"imports": imports, "call": call} for imports, call in calls]))
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(file)], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[")]


def sparse(path: Path) -> None:
    with open(path, "wb") as file:
        file.truncate(1 << 40)


def compressed_archive(path: Path) -> None:
    """Weights of zeros, as torch.save writes them, in an archive that is compressed."""
    buffer, grown = io.BytesIO(), bytes(GROWN)
    torch.save({"w": torch.zeros(1)}, buffer)
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb:
        for name in archive.namelist():
            bomb.writestr(name, grown if name.endswith("data/0") else archive.read(name))
    assert path.stat().st_size < 4 * MIB


def overlapping_archive(path: Path) -> None:
    """Write one stored record of 1 MiB that a thousand names of the archive's list share."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data/0", bytes(MIB))
        first = archive.infolist()[0]
        for number in range(1, 1000):
            record = zipfile.ZipInfo(f"archive/data/{number}")
            for fact in ("header_offset", "CRC", "compress_size", "file_size"):
                setattr(record, fact, getattr(first, fact))
            archive.filelist.append(record)
            archive.NameToInfo[record.filename] = record
        archive._didModify = True  # type: ignore[attr-defined]  # so that the list is written


def long_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")


def packed_zeros(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(GROWN // MIB):
            file.write(bytes(MIB))


Reader = Tuple[str, str]
WEIGHTS = ("from experiment.weights_file import read_weights", "read_weights({path!r})")
PROGRAM = ("from experiment.exported_program import load_program", "load_program(Path({path!r}))")
MODEL = ("from experiment.onnx_file import load_session; import onnx, onnxruntime", "load_session(Path({path!r}))")
IDX = ("from datasets.idx import read_idx", "read_idx(Path({path!r}), (100, 28, 28))")
YAML = ("from configs import load_config", "load_config({path!r})")
LOG = ("from experiment.metrics_log import MetricsLog", "MetricsLog({path!r}).truncate_after(1, 1)")
CURVES = ("from analysis.curves import read_records", "read_records(Path({path!r}))")
RESULTS = ("from analysis.results_file import read_results", "read_results(Path({path!r}))")
INDEX = ("from datasets.shards.store import FolderStore", "FolderStore(Path({path!r}).parent).read('x.tar.index')")

BOMBS: List[Tuple[str, Callable[[Path], None], Reader, str]] = [
    ("x.pt", compressed_archive, WEIGHTS, "is compressed"),
    ("x.pt", overlapping_archive, WEIGHTS, "its records claim"),
    ("x.pt", sparse, WEIGHTS, "1,099,511,627,776 bytes, over the limit"),
    ("x.pt2", compressed_archive, PROGRAM, "is compressed"),
    ("x.pt2", sparse, PROGRAM, "over the limit"),
    ("x.onnx", sparse, MODEL, "over the limit"),
    ("x.safetensors", sparse, WEIGHTS, "over the limit"),
    ("x.safetensors", long_header, WEIGHTS, "over the limit"),
    ("x.gz", packed_zeros, IDX, "is damaged"),
    ("x-ubyte", sparse, IDX, "over the limit"),
    ("x.yaml", sparse, YAML, "a config has at most"),
    ("metrics.jsonl", sparse, LOG, "over the limit"),
    ("metrics.jsonl", sparse, CURVES, "over the limit"),
    ("power.json", sparse, RESULTS, "over the limit"),
    ("x.tar.index", sparse, INDEX, "over the limit"),
]


NAMES = [f"{name} {make.__name__} {reader[1].partition('(')[0]}" for name, make, reader, _ in BOMBS]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Tuple[str, int]]:
    """Return what each reader said about its bomb, and what it took."""
    calls = []
    for number, (file_name, make, (imports, call), _) in enumerate(BOMBS):
        path = tmp_path_factory.mktemp(str(number)) / file_name
        make(path)
        calls.append((imports, call.format(path=str(path))))
    return dict(zip(NAMES, measured(tmp_path_factory.mktemp("calls"), calls)))


@pytest.mark.parametrize("name, part", [(name, row[-1]) for name, row in zip(NAMES, BOMBS)], ids=NAMES)
def test_a_bomb_is_refused_before_it_takes_memory(verdicts: Dict[str, Tuple[str, int]], name: str, part: str) -> None:
    said, grown = verdicts[name]
    assert part in said and grown < REFUSED_MIB


def png(side: int, colour: int, depth: int, channels: int, *chunks: Tuple[bytes, bytes]) -> bytes:
    """Return a black square; `colour` is PNG's colour type."""
    row = bytes(1 + (side * channels * depth + 7) // 8)
    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = (b"IHDR", struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0))
    parts = (header, *chunks, (b"IDAT", pixels), (b"IEND", b""))
    framed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


DECODE = "from datasets.images.encoded_image import EncodedImage"
IMAGES: Dict[str, Callable[[], bytes]] = {
    "RGB": lambda: png(8900, 2, 8, 3),
    "RGBA": lambda: png(8900, 6, 8, 4),
    "palette with a transparent colour, 76 KiB": lambda: png(8900, 3, 8, 1, (b"PLTE", bytes(768)), (b"tRNS", b"\0")),
    "gray, 16 bits": lambda: png(8900, 0, 16, 1),
}


@pytest.mark.slow
def test_images_just_within_the_limit_take_no_more_than_was_said(tmp_path: Path) -> None:
    calls = []
    for number, (_, make) in enumerate(IMAGES.items()):
        path = tmp_path / f"{number}.png"
        path.write_bytes(make())
        read = f"EncodedImage(Path({str(path)!r}).read_bytes(), 'x.png'"
        calls += [(DECODE, f"{read}, 1_000_000).pixels()"), (DECODE, f"{read}).pixels()")]
    results = measured(tmp_path, calls)
    assert all("79210000 pixels, over the limit of 1000000; data.max_megapixels is" in said for said, _ in results[::2])
    assert [said for said, _ in results[1::2]] == ["read"] * len(IMAGES)
    assert results[0][1] < REFUSED_MIB and sum(grown for _, grown in results) < DECODED_MIB


def test_packed_texts_and_profiles_of_an_image_do_not_grow(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(GROWN), 1)
    calls = []
    for kind in (b"zTXt", b"iCCP"):
        path = tmp_path / f"{kind.decode()}.png"
        path.write_bytes(png(16, 2, 8, 3, *[(kind, b"name\0\0" + packed)] * 3))
        calls.append((DECODE, f"EncodedImage(Path({str(path)!r}).read_bytes(), 'x.png').pixels()"))
    assert sum(grown for _, grown in measured(tmp_path, calls)) < REFUSED_MIB
