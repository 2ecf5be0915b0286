"""Pack a folder of image files into shards: tar files in WebDataset's layout, each with an index and a SHA-256 sum.

    python -m datasets.pack SRC DST [--shard-mib 256] [--seed 0] [--short-side 256 [--quality 90]]

SRC has the layout of image_folder; DST then is a data.dir for image_shards. Files are stored as they are, in a random
order, as NUMBER_CLASS_NAME.EXTENSION and NUMBER_CLASS_NAME.cls (the label), so that whoever reads shards from end to
end meets all classes at once. The same SRC and seed give the same bytes.

With --short-side, images with a longer one are resized to it and stored as JPEG files; the index says so, and so does
the record of each run that reads it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterator, List, Optional, Sequence, Tuple

from configs.arguments import MOST_PIXELS, positive, whole
from configs.atomic_file import replace_file
from configs.command_line import run_command
from configs.counted import counted
from configs.exit_codes import DISK, explain
from datasets.errors import DataError
from datasets.image_folder import FolderImages, open_folder
from datasets.images.encoded_image import EncodedImage
from datasets.images.smaller import Smaller
from datasets.keyed_random import KeyedRandom
from datasets.shards.image_shards import CLASSES_FILE, UNFINISHED
from datasets.shards.index import SUFFIX, make_index

MIB = 1 << 20
QUALITY = 90
BLOCK = 512
END = bytes(2 * BLOCK)
# What a key may hold: a dot would end it, and other systems disagree about the rest.
UNSAFE = re.compile("[^A-Za-z0-9_-]")


@dataclass(frozen=True)
class Packing:
    """How images are packed.

    Attributes:
        shard_bytes: size at which a shard is closed.
        seed: of the order of images.
        smaller: how they are stored smaller; None: as they are.
    """

    shard_bytes: int
    seed: int
    smaller: Optional[Smaller]

    def stored(self, image: EncodedImage, extension: str) -> Tuple[bytes, str]:
        """Return the content and the extension of an image's member."""
        content = None if self.smaller is None else self.smaller.encoded(image)
        return (image.content, extension) if content is None else (content, ".jpg")


class ShardWriter:
    """One tar file in the making.

    Args:
        path: of the finished shard, which appears whole or not at all.
        changed: for its index: how the images were changed.
    """

    def __init__(self, path: Path, changed: str) -> None:
        self.path = path
        self.changed = changed
        descriptor, self.temporary = tempfile.mkstemp(prefix=".part-", dir=path.parent)
        self.file = os.fdopen(descriptor, "wb")
        self.digest = hashlib.sha256()
        self.size = 0
        self.rows: List[Tuple[int, int, int, str]] = []

    def add(self, key: str, extension: str, content: bytes, label: int) -> None:
        """Append an image and its label."""
        self.rows.append((self.append(key + extension, content), len(content), label, key + extension))
        self.append(f"{key}.cls", str(label).encode())

    def append(self, name: str, content: bytes) -> int:
        """Append a member; return where its content begins."""
        member = tarfile.TarInfo(name)  # no owner, no time: the same images give the same bytes
        member.size, member.mode = len(content), 0o444
        self.write(member.tobuf(tarfile.GNU_FORMAT))
        offset = self.size
        self.write(content + bytes(-len(content) % BLOCK))
        return offset

    def write(self, content: bytes) -> None:
        self.file.write(content)
        self.digest.update(content)
        self.size += len(content)

    def finish(self) -> None:
        """Move the shard into place, then write its index."""
        self.write(END)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.chmod(self.temporary, 0o644)
        os.replace(self.temporary, self.path)
        index = make_index(self.path.name, self.size, self.digest.hexdigest(), self.rows)
        index = replace(index, changed=self.changed)
        replace_file(self.path.with_name(self.path.name + SUFFIX), index.content())

    def discard(self) -> None:
        self.file.close()
        if os.path.exists(self.temporary):
            os.unlink(self.temporary)


def shuffled(count: int, seed: int) -> List[int]:
    """Return the numbers 0 .. count - 1 in a random order (Fisher and Yates)."""
    order, random = list(range(count)), KeyedRandom(seed, count)
    for last in range(count - 1, 0, -1):
        other = random.integer(last + 1)
        order[last], order[other] = order[other], order[last]
    return order


def pack_half(images: FolderImages, target: Path, half: str, packing: Packing) -> Iterator[ShardWriter]:
    """Write the shards of one half; give each when it is finished.

    Raises:
        DataError: an image file cannot be read.
    """
    shard: Optional[ShardWriter] = None
    number = 0
    try:
        for position, index in enumerate(shuffled(len(images), packing.seed)):
            if shard is None:
                changed = "" if packing.smaller is None else str(packing.smaller)
                shard = ShardWriter(target / f"{half}-{number:06d}.tar", changed)
                number += 1
            image, label = images.load(index)
            name = Path(os.fsdecode(images.names[index].item()))
            key = UNSAFE.sub("_", f"{position:08d}_{images.class_names[label]}_{name.stem}")
            content, extension = packing.stored(image, name.suffix.lower())
            shard.add(key, extension, content, label)
            if shard.size >= packing.shard_bytes or position == len(images) - 1:
                shard.finish()
                yield shard
                shard = None
    finally:
        if shard is not None:
            shard.discard()


def pack(source: Path, target: Path, shard_bytes: int, seed: int, smaller: Optional[Smaller] = None) -> None:
    """Write the shards of both halves and the names of the classes.

    Raises:
        DataError: `source` has another layout or an unreadable file, with `smaller` a damaged one too, or `target` is
            not empty.
        OSError: the disk is full, or `target` cannot be written to.
    """
    halves = open_folder(source)
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise DataError(f"{target} is not empty; pack into a new folder")
    replace_file(target / UNFINISHED, b"")
    for half, images in halves.items():
        for shard in pack_half(images, target, half, Packing(shard_bytes, seed, smaller)):
            print(f"{shard.path}: {counted(len(shard.rows), 'image')}, {shard.size / MIB:,.1f} MiB", flush=True)
    replace_file(target / CLASSES_FILE, os.fsencode("".join(f"{name}\n" for name in halves["train"].class_names)))
    (target / UNFINISHED).unlink()


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return 0, 3 for unusable images or 74 for a disk that cannot be written to."""
    parser = argparse.ArgumentParser(prog="python -m datasets.pack", description="Pack a folder of images into shards.")
    parser.add_argument("source", type=Path, help="folder with train/CLASS/* and val/CLASS/*")
    parser.add_argument("target", type=Path, help="new folder for the shards")
    parser.add_argument("--shard-mib", type=positive, default=256, help="size at which a shard is closed")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the order of images")
    parser.add_argument(
        "--short-side", type=whole(most=MOST_PIXELS), help="shrink images with a longer short side to this many pixels"
    )
    parser.add_argument("--quality", type=whole(most=100), help=f"of the JPEG files then written (default: {QUALITY})")
    options = parser.parse_args(arguments)
    if options.short_side is None and options.quality is not None:
        parser.error("--quality applies to images that are stored smaller: add --short-side")
    quality = QUALITY if options.quality is None else options.quality
    smaller = None if options.short_side is None else Smaller(options.short_side, quality)
    try:
        pack(options.source, options.target, options.shard_mib * MIB, options.seed, smaller)
    except DataError as error:
        return explain(error)
    except OSError as error:
        print(f"error: {options.target}: {error}", file=sys.stderr)
        return DISK
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
