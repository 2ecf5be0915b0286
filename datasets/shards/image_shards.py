"""Images in tar files of WebDataset's layout, in a folder or at any URL that fsspec reads.

    python -m datasets.pack SRC DST        writes them from a folder of image files, with their index

An index makes every image one access of known place, so shards are a data set like any other: any image by its number,
the order decided elsewhere (training/order.py), exact continuation and splitting over processes for nothing. Shards
from elsewhere get their index when they are first used, by reading their headers and labels, and again when they have
changed.

An order over all images reads from all shards at once. Where that is slow (a distant place, whose shards are copied
when first needed; a disk that turns), data.shuffle_shards makes it go through a few shards at a time, in random order.

Layout: DIR holds *.tar, also in its folders train/ and val/. The word train or training in a name or its folder, or
else val, valid or validation, says which half a shard belongs to. DIR/classes.txt, where there is one, names the
classes, one a line.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from configs.errors import ConfigError
from configs.schema import DataConfig
from datasets.class_names import parse_class_names
from datasets.data_sets import DataSets, Parts, hash_listing
from datasets.errors import DataError, StoreError
from datasets.folder import data_folder, missing_data
from datasets.image_folder import encoded_data_sets
from datasets.images.decode import MAX_BYTES, MAX_PIXELS, pixel_limit
from datasets.images.encoded_image import EncodedImage, say_decoder, unusable
from datasets.shards.index import NOT_COMPUTED, SUFFIX, ShardIndex, parse_index
from datasets.shards.remote_store import RemoteStore
from datasets.shards.scan import scan_shard
from datasets.shards.store import FolderStore, ShardStore, StoredFile

REQUESTS_AT_ONCE = 16  # a distant place takes its time to answer each
CLASSES_FILE = "classes.txt"
UNFINISHED = "unfinished"  # there as long as packing goes on: some shards would be taken for all of them
LAYOUT = "train-*.tar and val-*.tar, as `python -m datasets.pack SRC DST` writes them"
LOGGER = logging.getLogger(__name__)
WORDS = {"train": {"train", "training"}, "val": {"val", "valid", "validation"}}


class ShardImages:
    """The images of one half, in the order of shards and within them.

    Args:
        store: where the shards are.
        indices: one for each shard.
        class_names: by label.
        max_pixels: images of more are refused.

    Raises:
        DataError: a label beyond the classes.
    """

    def __init__(
        self,
        store: ShardStore,
        indices: Sequence[ShardIndex],
        class_names: Tuple[str, ...],
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.store = store
        self.max_pixels = max_pixels
        self.class_names = class_names
        self.shards = [index.shard for index in indices]
        self.sums = [index.sha256 for index in indices]
        self.shard_of = np.repeat(np.arange(len(indices), dtype=np.int32), [len(index.labels) for index in indices])
        self.offsets = np.concatenate([index.offsets for index in indices])
        self.lengths = np.concatenate([index.lengths for index in indices])
        self.labels = np.concatenate([index.labels for index in indices])
        # a million Python strings would be copied into each loading process: see FolderImages
        self.names = np.array([os.fsencode(name) for index in indices for name in index.names])
        for index in indices:
            if index.labels.max() >= len(class_names):
                raise DataError(
                    f"{store.path(index.shard)}: the label {index.labels.max()} is beyond the {len(class_names)} "
                    f"classes of {CLASSES_FILE}; correct one of them"
                )
        self.fingerprint = hash_listing(class_names, self.names.tolist(), self.labels, self.lengths)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def must_copy(self) -> bool:
        return self.store.must_copy(self.shards)

    def load(self, index: int) -> Tuple[EncodedImage, int]:
        """Return the image and its label.

        Raises:
            DataError: naming shard, member and class, where it cannot be read, and StoreError where that is due to the
                place and not to the image.
        """
        return EncodedImage(self.content(index), self.name(index), self.max_pixels), int(self.labels[index])

    def name(self, index: int) -> str:
        """Return what errors call the image."""
        shard, member = self.shards[self.shard_of[index]], os.fsdecode(self.names[index])
        return f"{self.store.path(shard)}, {member} (class {self.class_names[self.labels[index]]})"

    def content(self, index: int) -> bytes:
        """Return the bytes of the member.

        Raises:
            DataError: as `load` does.
        """
        shard, length, name = self.shards[self.shard_of[index]], int(self.lengths[index]), self.name(index)
        if length > MAX_BYTES:
            raise unusable(name, f"it has {length} bytes, over the limit of {MAX_BYTES} for an image")
        try:
            content = self.store.read_range(shard, int(self.offsets[index]), length)
        except OSError as error:
            raise StoreError(f"{name}: cannot be read: {error.strerror or error}") from error
        if len(content) != length:
            raise unusable(name, f"the shard gave {len(content)} bytes of {length}: it is cut short")
        return content


def open_store(config: DataConfig) -> ShardStore:
    """Return the place that data.dir names: a URL if it has ://, else a folder."""
    if config.dir is not None and "://" in config.dir:
        return RemoteStore(config.dir, Path(config.cache_dir).expanduser() if config.cache_dir else None)
    if config.cache_dir is not None:
        raise ConfigError(
            f"data.cache_dir {config.cache_dir!r} has no effect: data.dir {config.dir!r} is not a URL; remove it"
        )
    return FolderStore(data_folder(config.dir))


def find_shards(store: ShardStore, files: Iterable[str]) -> Dict[str, List[str]]:
    """Return the names of each half's shards among `files`.

    Raises:
        DataError: a name that tells no half, or both.
    """
    halves: Dict[str, List[str]] = {"train": [], "val": []}
    for name in sorted(files):
        if not name.endswith(".tar"):
            continue
        words = set(re.split("[^a-z]+", name.lower()))
        found = [half for half in halves if words & WORDS[half]]
        if len(found) != 1:
            raise DataError(
                f"{store.path(name)}: its name says {' and '.join(found) or 'neither train nor val'}; rename it or "
                f"move it away; expected {LAYOUT}"
            )
        halves[found[0]].append(name)
    return halves


def read_index(store: ShardStore, shard: str, files: Dict[str, StoredFile]) -> Optional[ShardIndex]:
    """Return the index of a shard among `files`; None if there is none that fits its version and today's rules.

    Raises:
        DataError: the shard or its index is damaged, or they do not belong together.
    """
    if shard + SUFFIX not in files:
        return None
    file = files[shard]
    index = parse_index(store.path(shard), store.read(shard + SUFFIX))
    is_of_this = (index.num_bytes, index.version) == (file.num_bytes, file.version)
    if index.is_former or (index.sha256 == NOT_COMPUTED and not is_of_this):
        return None
    if index.num_bytes != file.num_bytes:
        raise DataError(
            f"{store.path(shard)}: it has {file.num_bytes} bytes and its index says {index.num_bytes}: one of them "
            "is damaged or from elsewhere; replace the shard, or remove the index to rebuild it"
        )
    return dataclasses.replace(index, shard=shard)


def build_index(store: ShardStore, shard: str, file: StoredFile) -> Tuple[ShardIndex, Optional[str]]:
    """Build the index of a shard from elsewhere; return it, and why it could not be saved for the next start.

    Raises:
        DataError: the shard is damaged, or of another layout.
    """
    with store.open(shard) as opened:
        index = scan_shard(store.path(shard), opened)
    index = dataclasses.replace(index, shard=shard, version=file.version)
    try:
        store.write_index(shard + SUFFIX, index.content())
    except OSError as error:
        return index, error.strerror or str(error)
    return index, None


def load_halves(store: ShardStore) -> Tuple[Dict[str, List[ShardIndex]], Tuple[str, ...]]:
    """Return each half's indices and the names of the classes; see the top of this file for the layout."""
    files = store.files()
    if UNFINISHED in files:
        raise DataError(
            f"{store.path(UNFINISHED)}: these shards are being packed, or packing was interrupted; wait, or "
            "pack again into a new folder"
        )
    halves = find_shards(store, files)
    shards = [shard for half in halves.values() for shard in half]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        kept = list(pool.map(lambda shard: read_index(store, shard, files), shards))
        found = {index.shard: index for index in kept if index is not None}
        missing = [shard for shard in shards if shard not in found]
        if missing:
            LOGGER.warning("building the index of %d shards, first %s", len(missing), missing[0])
        built = list(pool.map(lambda shard: build_index(store, shard, files[shard]), missing))
    found.update((index.shard, index) for index, _ in built)
    companions = [index for index, _ in built if index.companions]
    if companions:
        LOGGER.warning(
            "%d files of macOS (._NAME) are skipped, the first in %s; COPYFILE_DISABLE=1 keeps tar from adding them",
            sum(index.companions for index in companions),
            store.path(companions[0].shard),
        )
    reasons = [reason for _, reason in built if reason is not None]
    if reasons:
        LOGGER.warning(
            "the index of %d shards cannot be saved (%s): each start reads these shards from end to end; set "
            "data.cache_dir for a URL, or run `python -m datasets.check` once as a user who may write to the folder",
            len(reasons),
            reasons[0],
        )
    indices = {half: [found[shard] for shard in names] for half, names in halves.items()}
    if CLASSES_FILE in files:
        return indices, parse_class_names(store.path(CLASSES_FILE), store.read(CLASSES_FILE))
    seen = [index.labels for half in indices.values() for index in half]
    labels = np.unique(np.concatenate(seen)) if seen else np.zeros(0, dtype=np.int32)
    num_classes = int(labels.max()) + 1 if len(labels) else 0
    if len(labels) < num_classes:
        LOGGER.warning(
            "labels go up to %d, and %d of them have no image: %d classes; %s, where there is one, names them",
            num_classes - 1,
            num_classes - len(labels),
            num_classes,
            store.path(CLASSES_FILE),
        )
    return indices, tuple(str(label) for label in range(num_classes))


def build(config: DataConfig, seed: int) -> DataSets:
    """Return the images of the shards; evaluation and, without min_crop_area, training use the central crop.

    Raises:
        ConfigError: a cache folder for shards that are in a folder already.
        DataError: no shards, or damaged ones, or a label beyond the classes.
    """
    say_decoder()
    store = open_store(config)
    try:
        indices, class_names = load_halves(store)
    except OSError as error:
        raise DataError(f"{store.path('')}: cannot be read: {error}") from error
    empty = [half for half, found in indices.items() if sum(len(index.labels) for index in found) == 0]
    if empty:
        reason = f"no images to {' and '.join('train on' if half == 'train' else 'evaluate on' for half in empty)}"
        raise missing_data("image_shards", config.dir, LAYOUT, reason)
    if len(class_names) < 2:
        raise DataError(f"{store.path('')}: {len(class_names)} classes; a classifier needs 2 or more")
    train, evaluation = (
        ShardImages(store, [index for index in indices[half] if len(index.labels)], class_names, pixel_limit(config))
        for half in ("train", "val")
    )
    parts = None
    if config.shuffle_shards is not None:
        parts = Parts(tuple(np.bincount(train.shard_of).tolist()), config.shuffle_shards)
    found = {index.changed for half in indices.values() for index in half}
    changed = sorted(each or "as they came" for each in found) if found != {""} else []
    data_sets = encoded_data_sets(config, seed, train, evaluation, parts)
    return dataclasses.replace(data_sets, changed="; ".join(changed))
