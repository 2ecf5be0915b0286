"""Tar files from elsewhere: every image of them is found with its label, or an error says what is wrong and where."""

import io
import random
import tarfile
import tracemalloc
from typing import Callable, Dict, List, Optional, Tuple, Union

import pytest
from test_datasets_shards import contents, jpeg, shards_config, write_foreign

from datasets import DataError, build_datasets, check
from datasets.shards.index import FORMER_FORMAT, parse_index
from datasets.shards.scan import scan_shard
from datasets.shards.tar_members import BLOCK, RECORD, read_tar

Member = Tuple[str, Union[bytes, tarfile.TarInfo]]
NUM_IMAGES = 8
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(100)


def samples(first: int = 0, last: int = NUM_IMAGES) -> List[Member]:
    """Return images of 600 bytes and more, with the last digit of their number as label."""
    parts = [[(f"{n:06}.jpg", jpeg(n)), (f"{n:06}.cls", str(n % 10).encode())] for n in range(first, last)]
    return [member for part in parts for member in part]


def tar(members: List[Member], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def link(target: str, kind: bytes = tarfile.LNKTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, target
    return info


def of_type(kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type = kind
    return info


def found(content: bytes) -> List[Tuple[bytes, int]]:
    index = scan_shard("made.tar", io.BytesIO(content))
    places = zip(index.offsets.tolist(), index.lengths.tolist(), index.labels.tolist())
    return [(content[offset : offset + length], label) for offset, length, label in places]


WHOLE = [(jpeg(number), number) for number in range(NUM_IMAGES)]


def end_mark_alone(content: bytes) -> bytes:
    return content[: len(content.rstrip(b"\0")) // BLOCK * BLOCK + BLOCK] + bytes(2 * BLOCK)


def interleaved(*extra: Member) -> List[Member]:
    return [member for number in range(NUM_IMAGES) for member in (*samples(number, number + 1), *extra)]


def with_companions() -> List[Member]:
    """As `tar --sort=name` of a folder that macOS has written to."""
    both = [part for name, content in samples() for part in ((name, content), (f"._{name}", APPLE_DOUBLE))]
    return sorted(both, key=lambda member: member[0].replace("._", "") + member[0])


def captions(text: bytes) -> List[Member]:
    parts = [
        [(f"{n:06}.jpg", jpeg(n)), (f"{n:06}.txt", text), (f"{n:06}.json", b'{"label": %d}' % n)]
        for n in range(NUM_IMAGES)
    ]
    return [member for part in parts for member in part]


def linked(kind: bytes) -> List[Member]:
    """Return images 0 to 7, of which the last is a link to a member in front of all."""
    first = [("store/seven.bin", jpeg(7))]
    folder = [(f"a/{name}", content) for name, content in samples()]
    target = "store/seven.bin" if kind == tarfile.LNKTYPE else "../store/seven.bin"
    return first + [(name, link(target, kind) if name == "a/000007.jpg" else content) for name, content in folder]


def chained() -> List[Member]:
    members = linked(tarfile.LNKTYPE)
    return [members[0], ("store/again.bin", link("./store/seven.bin"))] + [
        (name, link("../store/again.bin", tarfile.SYMTYPE) if isinstance(content, tarfile.TarInfo) else content)
        for name, content in members[1:]
    ]


READ: Dict[str, Callable[[], bytes]] = {
    "GNU": lambda: tar(samples()),
    "ustar": lambda: tar(samples(), tarfile.USTAR_FORMAT),
    "pax": lambda: tar(samples(), tarfile.PAX_FORMAT),
    "end mark alone": lambda: end_mark_alone(tar(samples())),
    "joined": lambda: tar(samples(0, 4)) + tar(samples(4, 8)),
    "joined, end mark alone": lambda: end_mark_alone(tar(samples(0, 3))) + tar(samples(3, 8)),
    "joined of three": lambda: tar(samples(0, 1)) + tar(samples(1, 6)) + tar(samples(6, 8)),
    "hard link": lambda: tar(linked(tarfile.LNKTYPE)),
    "symbolic link": lambda: tar(linked(tarfile.SYMTYPE)),
    "a link to a link": lambda: tar(chained()),
    "folders and devices": lambda: tar(
        [("a", of_type(tarfile.DIRTYPE)), ("null", of_type(tarfile.CHRTYPE))] + samples()
    ),
    "macOS": lambda: tar(with_companions()),
    "macOS, pax": lambda: tar(with_companions(), tarfile.PAX_FORMAT),
    "a caption of digits": lambda: tar(captions(b"2020")),
    "a caption of words": lambda: tar(captions(b"a dog")),
    "files that are not samples": lambda: tar(
        [("README", b"x"), ("links.csv", b"a")] + samples() + [(".DS_Store", b"")]
    ),
    "further images of a key": lambda: tar(
        [part for n in range(8) for part in (*samples(n, n + 1), (f"{n:06}.seg.png", b"x"))]
    ),
    "long names": lambda: tar([("folder/" * 30 + name, content) for name, content in samples()]),
    "long names, pax": lambda: tar(
        [("ordnér/" * 30 + name, content) for name, content in samples()], tarfile.PAX_FORMAT
    ),
}


@pytest.mark.parametrize("content", READ.values(), ids=READ)
def test_every_image_of_a_tar_file_is_found_with_its_label(content):
    assert found(content()) == WHOLE


def damage_header(number: int) -> bytes:
    content = bytearray(tar(samples()))
    places = [member.offset for member in read_tar("made.tar", io.BytesIO(bytes(content)))]
    content[places[number] - BLOCK + 3] ^= 0x10
    return bytes(content)


def zeroed(first: int, blocks: int) -> bytes:
    content = bytearray(tar(samples()))
    content[first * BLOCK : (first + blocks) * BLOCK] = bytes(blocks * BLOCK)
    return bytes(content)


def without_end() -> bytes:
    return end_mark_alone(tar(samples()))[: -2 * BLOCK]


def unsorted() -> List[Member]:
    return samples()[::2] + samples()[1::2]


def sparse_header() -> tarfile.TarInfo:
    info = tarfile.TarInfo("000009.bmp")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 1 << 40
    return info


def sparse_pax() -> bytes:
    info = tarfile.TarInfo("GNUSparseFile.0/000009.jpg")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "000009.jpg", "GNU.sparse.realsize": "99999999"}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info)
    return buffer.getvalue()


REFUSED: Dict[str, Tuple[Callable[[], bytes], str]] = {
    "a damaged header": (lambda: damage_header(6), r"damaged at byte \d+: no header of a member \(bad checksum\)"),
    "a damaged first header": (lambda: damage_header(0), r"not an uncompressed tar file: it begins with b'"),
    "a header of zeros": (lambda: zeroed(0, 1), "damaged at byte 0: 512 bytes of zeros"),
    "a hole": (lambda: zeroed(4, 30), r"damaged at byte \d+: "),
    "a hole from a header to the end": (
        lambda: tar(samples(0, 4)) + bytes(2 * RECORD), "damaged at byte .* more than 10752 bytes of zeros",
    ),
    "a hole from a header to a header": (
        lambda: tar(samples(0, 4))[: 20 * BLOCK] + bytes(4 * BLOCK) + tar(samples(4, 8)), "bytes of zeros",
    ),
    "no end mark": (without_end, "cut short: .* without the 2 blocks of zeros"),
    "half an end mark": (lambda: without_end() + bytes(BLOCK), "512 bytes of zeros"),
    "cut in a member": (
        lambda: tar(samples())[:3200], r"cut short: it has 3200 bytes, and its member 000001\.jpg ends at",
    ),
    "bytes behind the end": (lambda: tar(samples()) + b"x" * BLOCK, r"damaged at byte 30720: no header"),
    "a few bytes behind the end": (lambda: tar(samples()) + b"x", r"damaged at byte 30720: no header"),
    "compressed": (lambda: b"\x1f\x8b" + bytes(600), "not an uncompressed tar file: compressed with gzip"),
    "unsorted": (lambda: tar(unsorted()), r"000000\.jpg has its label elsewhere: .* `tar --sort=name`"),
    "labels in front": (
        lambda: tar(unsorted()[8:] + unsorted()[:8]), r"000000\.cls has its image elsewhere: .* `tar --sort=name`",
    ),
    "sparse": (lambda: tar(samples() + [("000009.bmp", sparse_header())]), r"000009\.bmp is a sparse file"),
    "sparse, pax": (sparse_pax, r"is a sparse file, with holes left out"),
    "of several volumes": (lambda: tar([("a.jpg", of_type(b"M"))]), "part of a file of several volumes"),
    "an unknown type": (lambda: tar(samples() + [("a.jpg", of_type(b"Q"))]), r"a\.jpg is of the type b'Q'"),
    "a link outside": (
        lambda: tar([("a.jpg", link("/etc/passwd", tarfile.SYMTYPE)), ("a.cls", b"0")]),
        r"a\.jpg is a link to /etc/passwd, which is not an earlier member; .* `tar --dereference --hard-dereference`",
    ),
    "a label that is a link outside": (lambda: tar([("a.jpg", b"x"), ("a.cls", link("b"))]), r"a\.cls is a link to b,"),
    "a pipe": (lambda: tar([("a.jpg", of_type(tarfile.FIFOTYPE))]), r"a\.jpg is a device or pipe, not a file"),
    "images of another format": (
        lambda: tar(interleaved()[:4] + [("a.heic", b"x"), ("a.cls", b"1")]),
        r"a\.cls is a label without an image; its key also has a\.heic; expected one image \(\.avif",
    ),
    "a label alone": (lambda: tar(samples() + [("a.cls", b"1")]), r"a\.cls is a label without an image; .* nothing "
    r"else"),
    "a dot in the key": (lambda: tar(samples() + [("a.v2.jpg", b"x")]), r"a\.v2\.jpg is not taken for an image: .* "
    r"dot"),
    "a label of 17 MiB": (lambda: tar([("a.jpg", b"x"), ("a.json", bytes(17 << 20))]), "over the limit of 16777216"),
    "a name of 2 MiB": (lambda: tar([("x" * (2 << 20), b"x")]), "bytes of names, over the limit of 1048576"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_a_tar_file_that_would_lose_images_is_refused_with_the_place(content, message):
    with pytest.raises(DataError, match=f"^made\\.tar: .*{message}"):
        found(content())


def test_a_sparse_member_is_refused_by_its_header_before_memory_is_taken():
    content = tar(samples() + [("000009.bmp", sparse_header())])
    tracemalloc.start()
    with pytest.raises(DataError, match="sparse"):
        found(content)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20  # the header says 1 TiB
    tracemalloc.stop()


def test_the_files_of_macos_are_told_of_once(tmp_path, caplog):
    folder = write_foreign(tmp_path)
    for name in ("set-train-0.tar", "set-train-1.tar"):
        (folder / name).write_bytes(tar(with_companions()))
    for _ in range(2):  # the second time, their indices are read
        assert len(build_datasets(shards_config(folder), 0).train) == 2 * NUM_IMAGES
    said = [record.message for record in caplog.records if "macOS" in record.message]
    assert len(said) == 1 and said[0].startswith("32 files of macOS (._NAME) are skipped, the first in ")


def test_a_name_like_those_of_macos_is_an_image_where_its_content_is_not_theirs():
    with pytest.raises(DataError, match=r"\._a\.jpg is not taken for an image"):
        found(tar(samples() + [("._a.jpg", jpeg())]))


def test_a_caption_of_digits_makes_no_classes_and_unused_labels_are_told_of(tmp_path, caplog):
    folder = write_foreign(tmp_path)
    (folder / "set-train-0.tar").write_bytes(tar(captions(b"2020")))
    assert build_datasets(shards_config(folder), 0).class_names == tuple(str(label) for label in range(8))
    assert "have no image" not in caplog.text
    (folder / "set-train-0.tar").write_bytes(tar([("a.jpg", jpeg()), ("a.txt", b"2020")]))
    assert len(build_datasets(shards_config(folder), 0).class_names) == 2021
    assert "labels go up to 2020, and 2018 of them have no image: 2021 classes; " in caplog.text


def test_an_index_that_former_rules_built_is_built_anew(tmp_path):
    folder = write_foreign(tmp_path)
    path = folder / "set-train-0.tar"
    path.write_bytes(tar(samples(0, 4)))
    build_datasets(shards_config(folder), 0)
    index = folder / "set-train-0.tar.index"
    lines = index.read_text().splitlines(keepends=True)
    # what the former rules left of a file of this size and time: one image less
    header = lines[0].replace(lines[0].split("\t")[0], FORMER_FORMAT).replace("\t4\t", "\t3\t")
    index.write_text(header + "".join(lines[1:4]))
    assert parse_index("x", index.read_bytes()).is_former
    assert len(build_datasets(shards_config(folder), 0).train) == 4
    # that of a packed shard came from the packing itself
    index.write_text(f"{FORMER_FORMAT}\t{path.stat().st_size}\t{'0' * 64}\t3\n" + "".join(lines[1:4]))
    assert len(build_datasets(shards_config(folder), 0).train) == 3


# Damage


def base(number: int) -> bytes:
    """Return one of the kinds of tar files that are read whole."""
    kinds = sorted(READ)
    return READ[kinds[number % len(kinds)]]()


def damaged(content: bytes, draw: random.Random) -> Tuple[str, bytes]:
    """Return the content with one damage of the kinds that disks, networks and people make.

    Not such that whole samples are missing and the rest is again a tar file: no reader can see that without a sum.
    """
    parts = [content[place : place + BLOCK] for place in range(0, len(content), BLOCK)]
    members = [member for member in read_tar("made.tar", io.BytesIO(content)) if member.name.endswith(".jpg")]
    between = {member.offset // BLOCK - back for member in members for back in (1, 2, 3, 4)}  # with fields in front
    between |= {place for place in range(1, len(parts)) if not any(parts[place - 1])}  # in an end mark
    first = draw.choice([place for place in range(1, len(parts)) if place not in between])
    length = draw.choice([1, 1, 2, 4, 8, 20])
    kind = draw.choice(["flip", "cut", "cut at a block", "swap", "zeros", "repeat"])
    if kind == "flip":
        changed = bytearray(content)
        for _ in range(draw.choice([1, 1, 2, 8])):
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        return kind, bytes(changed)
    if kind == "cut":
        return kind, content[: first * BLOCK - draw.randrange(1, BLOCK)]
    if kind == "cut at a block":
        return kind, content[: first * BLOCK]
    if kind == "swap":
        second = draw.randrange(len(parts))
        parts[first], parts[second] = parts[second], parts[first]
    elif kind == "zeros":
        parts[first : first + length] = [bytes(BLOCK)] * len(parts[first : first + length])
    else:
        parts[first:first] = parts[first : first + length]
    return kind, b"".join(parts)


def lost_without_a_word(seed: int) -> Optional[str]:
    """Return what is wrong with how a damaged shard is read; nothing for a data error, or if all images are there."""
    draw = random.Random(seed)
    kind, content = damaged(base(seed), draw)
    try:
        images = found(content)
    except DataError as error:
        return None if "\n" not in str(error) and len(str(error)) < 400 else f"{seed} {kind}: {error}"
    return None if len(images) >= NUM_IMAGES else f"{seed} {kind}: {len(images)} images"


@pytest.mark.parametrize(
    "seeds", [range(80), pytest.param(range(80, 3000), marks=pytest.mark.slow)], ids=["80", "3000"]
)
def test_no_damage_loses_an_image_without_an_error(seeds):
    assert [problem for problem in map(lost_without_a_word, seeds) if problem] == []


def test_joined_shards_load_as_one(tmp_path):
    folder = write_foreign(tmp_path)
    (folder / "set-train-0.tar").write_bytes(tar(samples(0, 4)) + tar(samples(4, 8)))
    assert contents(build_datasets(shards_config(folder), 0).train) == sorted(WHOLE)


@pytest.mark.parametrize("seeds", [range(12), pytest.param(range(12, 300), marks=pytest.mark.slow)], ids=["12", "300"])
def test_the_check_of_a_damaged_shard_ends_in_errors_or_in_all_images_and_never_in_a_traceback(tmp_path, seeds):
    folder = write_foreign(tmp_path)
    config = shards_config(folder)
    for seed in seeds:
        kind, content = damaged(base(seed), random.Random(seed))
        (folder / "set-train-0.tar").write_bytes(content)
        for index in folder.glob("*.index"):
            index.unlink()
        report = check.check(config, workers=0)
        readable = [line for line in report.lines if line.startswith("train: ") and " readable" in line]
        # images and labels whose own bits changed are read, or reported, as they are: all of them are counted
        counts = [int(line.split()[1]) for line in readable]
        assert report.errors if not counts else counts[0] >= NUM_IMAGES, (seed, kind, report.lines)
