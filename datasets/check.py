"""Check every image of a data set and print a report.

    python -m datasets.check --config rn50_gn8pn [--set data.dir=DIR] [--workers 8]

Reads and decodes every image, compares shards with their index and, where they have one, their SHA-256 sum, and counts.
Lines that begin with "error" make the exit code 3: a layout that the data set would refuse, an unreadable image, a
class without images in one half, a shard that is not as it was packed or indexed. Other lines are facts to look at:
sizes, modes, copies, images in both halves. The last line is "ok", or says how many kinds of errors there are.

Exit code: 0 ok, 2 the configuration cannot be, 3 errors.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np
from PIL import Image

from configs import load_config
from configs.arguments import whole
from configs.command_line import run_command
from configs.counted import counted
from configs.exit_codes import DATA, DONE, EXPLAINED, explain
from configs.schema import DataConfig
from datasets import build_datasets
from datasets.data_sets import DataSets
from datasets.errors import DataError
from datasets.folder import data_folder
from datasets.image_folder import HALVES, has_image_name, read_image_file
from datasets.images.decode import FORMATS, pixel_limit
from datasets.images.encoded_image import EncodedImage, unusable
from datasets.shards.image_shards import ShardImages
from datasets.shards.index import NOT_COMPUTED
from datasets.shards.scan import scan_shard
from datasets.shards.store import file_sum

SHOWN = 20  # names of each kind that are listed
IMAGES_AT_ONCE = 64


@dataclass
class Report:
    """Readable lines, and the number of kinds of errors among them."""

    lines: List[str] = field(default_factory=list)
    errors: int = 0

    def complain(self, what: str, names: Sequence[str]) -> None:
        """Add an error, `what`, with the first names, if there are any."""
        if names:
            self.errors += 1
            self.lines += [f"error: {what}: {len(names):,}"] + [f"  {name}" for name in names[:SHOWN]]
            self.lines += [f"  ... and {len(names) - SHOWN:,} more"] if len(names) > SHOWN else []


@dataclass(frozen=True)
class Finding:
    """What one image is like, or why it cannot be used."""

    problem: Optional[str] = None
    label: int = -1
    size: Tuple[int, int] = (0, 0)
    mode: str = ""
    digest: bytes = b""


_source: Any = None  # of a process that inspects images; sending it along with each index would take longer


def inspect_from(source: Any) -> None:
    global _source  # noqa: PLW0603
    _source = source


def inspect(index: int) -> Finding:
    """Load and decode one image."""
    try:
        image, label = _source.load(index)
        if not isinstance(image, EncodedImage):
            return Finding(None, label, image.shape[1:], f"{image.shape[0]} channels", digest_of(image.tobytes()))
        image.pixels()
        with Image.open(BytesIO(image.content), formats=FORMATS) as opened:
            mode = f"{opened.format} {opened.mode}"
        return Finding(None, label, (image.height, image.width), mode, digest_of(image.content))
    except DataError as error:
        return Finding(str(error))


def digest_of(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def inspect_all(source: Any, workers: int) -> Iterable[Finding]:
    """Give the finding of each image, in order.

    Raises:
        DataError: a process died.
    """
    if workers == 0:
        inspect_from(source)
        return [inspect(index) for index in range(len(source))]
    try:
        with ProcessPoolExecutor(workers, initializer=inspect_from, initargs=(source,)) as pool:
            return list(pool.map(inspect, range(len(source)), chunksize=IMAGES_AT_ONCE))
    except BrokenProcessPool as error:
        raise DataError("a process that read images died; --workers 0 shows where") from error


def check_half(report: Report, half: str, source: Any, class_names: Sequence[str], workers: int) -> Set[bytes]:
    """Report on one half; return the digests of its images."""
    findings = list(inspect_all(source, workers))
    readable = [finding for finding in findings if finding.problem is None]
    by_label = Counter(finding.label for finding in readable)
    counts = {name: by_label[label] for label, name in enumerate(class_names)}
    report.lines.append(
        f"{half}: {counted(len(findings), 'image')}, {len(readable):,} of them readable, in {len(by_label):,} of "
        f"{len(class_names):,} classes, {min(counts.values()):,} to {max(counts.values()):,} a class"
    )
    if len(class_names) <= SHOWN:
        report.lines += [f"  {name}: {count:,}" for name, count in counts.items()]
    if readable:
        heights, widths = zip(*(finding.size for finding in readable))
        report.lines.append(f"  height {min(heights)} to {max(heights)}, width {min(widths)} to {max(widths)}")
        modes = Counter(finding.mode for finding in readable)
        report.lines.append("  " + ", ".join(f"{mode}: {count:,}" for mode, count in modes.most_common()))
    digests = {finding.digest for finding in readable}
    report.lines.append(f"  {len(readable) - len(digests):,} are copies of others")
    report.complain(f"{half}: classes without a readable image", [name for name, count in counts.items() if count == 0])
    report.complain(f"{half}: unreadable images", [finding.problem for finding in findings if finding.problem])
    return digests


def check_shards(report: Report, half: str, source: ShardImages) -> None:
    """Report on the shards of one half."""
    problems = (shard_problem(source, number) for number in range(len(source.shards)))
    scanned = source.sums.count(NOT_COMPUTED)
    report.complain(f"{half}: shards that have changed", [problem for problem in problems if problem is not None])
    report.lines.append(f"{half}: {counted(len(source.shards), 'shard')}, {scanned:,} of them without a sum")


def shard_problem(source: ShardImages, number: int) -> Optional[str]:
    """Return how a shard differs from its sum, if it has one, or from its index; None where it does not."""
    shard, sha256 = source.shards[number], source.sums[number]
    path, kept = source.store.path(shard), source.shard_of == number
    with source.store.open(shard) as file:
        if sha256 != NOT_COMPUTED:
            found_sum = file_sum(file)
            if found_sum != sha256:
                return f"{path}: its SHA-256 sum is {found_sum}, packed as {sha256}"
        try:
            found = scan_shard(path, file)
        except DataError as error:
            return str(error)
    images = ("offsets", "lengths", "labels")
    if all(np.array_equal(getattr(found, what), getattr(source, what)[kept]) for what in images):
        return None
    return f"{path}: its images or labels differ from its index; remove the index"


class AnyImages:
    """The image files of a folder by their names, whatever else is there: those of a layout that is refused."""

    def __init__(self, folder: Path, max_pixels: int) -> None:
        self.max_pixels = max_pixels
        files = sorted(path for half in HALVES for path in folder.glob(f"{half}/*/*"))
        self.files = [path for path in files if has_image_name(os.fsencode(path.name)) and path.is_file()]

    def __len__(self) -> int:
        return len(self.files)

    def load(self, index: int) -> Tuple[EncodedImage, int]:
        path = self.files[index]
        try:
            return EncodedImage(read_image_file(path), str(path), self.max_pixels), 0
        except OSError as error:
            raise unusable(str(path), error.strerror or str(error)) from error


def folder_problems(folder: Path) -> Iterator[str]:
    """Give everything in a folder that is not as image_folder needs it."""
    classes: Dict[str, Set[str]] = {}
    for half in HALVES:
        entries = sorted(path for path in folder.glob(f"{half}/*") if not path.name.startswith("."))
        classes[half] = {path.name for path in entries if path.is_dir()}
        yield from (f"{path}: not a class folder" for path in entries if not path.is_dir())
        for name in sorted(classes[half]):
            place = folder / half / name
            files = [path for path in sorted(place.iterdir()) if not path.name.startswith(".")]
            others = [path for path in files if not (has_image_name(os.fsencode(path.name)) and path.is_file())]
            yield from (f"{path}: not a file, or not an image by its name" for path in others)
            if len(others) == len(files):
                yield f"{place}: a class without images"
    for name in sorted(classes["train"] ^ classes["val"]):
        yield f"{folder}: class {name} is in {'train' if name in classes['train'] else 'val'} alone"


def check(config: DataConfig, workers: int) -> Report:
    """Check the data set that `config` names."""
    report = Report()
    if config.name == "image_folder":
        report.complain("not in the expected layout", list(folder_problems(data_folder(config.dir))))
    try:
        data_sets: DataSets = build_datasets(config, seed=0)
        halves = {"train": data_sets.train.source, "val": data_sets.evaluation.source}
        digests = []
        for half, source in halves.items():
            if isinstance(source, ShardImages):
                check_shards(report, half, source)
            digests.append(check_half(report, half, source, data_sets.class_names, workers))
        report.lines.append(f"{len(digests[0] & digests[1]):,} images are in both halves")
    except (DataError, OSError) as error:
        report.complain("the data set cannot be used", [str(error)])
        if config.name == "image_folder":
            findings = inspect_all(AnyImages(data_folder(config.dir), pixel_limit(config)), workers)
            report.complain("unreadable images", [finding.problem for finding in findings if finding.problem])
    return report


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Print the report; return 0, 3 for bad data or 2 for a configuration that cannot be."""
    parser = argparse.ArgumentParser(prog="python -m datasets.check", description="Check every image of a data set.")
    parser.add_argument(
        "--config", required=True, metavar="NAME|PATH", help="an experiment of configs/, or a YAML file"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override one value; null leaves it out"
    )
    parser.add_argument("--workers", type=whole(0), default=os.cpu_count() or 1, help="processes that read images")
    options = parser.parse_args(arguments)
    if options.workers < 0:
        parser.error(f"--workers {options.workers} must be 0 or more")
    try:
        report = check(load_config(options.config, options.set).data, options.workers)
    except EXPLAINED as error:
        return explain(error)
    text = "\n".join(report.lines + [f"errors of {report.errors} kinds" if report.errors else "ok"])
    print(text.encode("utf-8", "backslashreplace").decode("utf-8"))  # names may be of bytes that are not UTF-8
    return DATA if report.errors else DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
