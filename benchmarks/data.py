"""How fast images are loaded: JPEG files of 500 x 400 pixels to augmented uint8 tensors, images per second and core.

    python -m benchmarks.data [--quick] [--quality 90] [--workers 1]

The files are random crops of the ten photographs of datasets/photo_files.py, resized to 500 x 400. All variants crop a
random window of 5 % to 100 % of the image, resize it and mirror half of the images:

    torchvision          ImageFolder with Pillow and torchvision's random transforms
    folder, Pillow       this project's image_folder by Pillow and torch alone
    folder, whole        by simplejpeg, which decodes whole images, and torch's resize: without the C++
    folder, shards       this project's image_folder and image_shards

The first table takes one thread of one process. The second compares loaders with it, of 0, 1, 2 and 4 processes: of
these files in shards, and of images in memory of the sizes of CIFAR's and Fashion-MNIST's, shifted and mirrored. Then a
network trains that is small enough to ask for as many images as are loaded (ResNet-8 of width 8 on images of a quarter
of the size).
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence
from unittest import mock

import torch
from PIL import Image

from backends.host_memory import keep_freed_memory
from benchmarks.loading import small_images, time_loaders, time_training
from benchmarks.protocol import measure
from benchmarks.results import RESULTS, write_results
from configs.schema import DataConfig
from datasets import DataSets, build_datasets, pack
from datasets.images import encoded_image, transforms
from datasets.images.torchvision_import import torchvision
from datasets.keyed_random import KeyedRandom
from datasets.photo_files import obtain_photos

WIDTH, HEIGHT = 500, 400
SMALLEST_SHARE = 0.7  # of the largest possible crop's width
MIN_CROP_AREA = 0.05
CLASSES = ("first", "second")
SHARD_BYTES = 8 << 20
BATCH = 32
SMALL_BATCH = 128
SMALL_IMAGES = {
    "32 px, colour, in memory": partial(small_images, channels=3, side=32, padding=4),
    "28 px, gray, in memory": partial(small_images, channels=1, side=28, padding=2),
}


def write_photos(folder: Path, count: int, quality: int) -> float:
    """Write `count` images to train on and the first two to evaluate on; return their mean size in bytes."""
    photos = [Image.open(BytesIO(content)).convert("RGB") for content in obtain_photos().values()]
    sizes = []
    for number in range(count):
        photo, random = photos[number % len(photos)], KeyedRandom(number)
        width = min(photo.width, photo.height * WIDTH / HEIGHT) * random.uniform(SMALLEST_SHARE, 1)
        height = width * HEIGHT / WIDTH
        left, top = random.uniform(0, photo.width - width), random.uniform(0, photo.height - height)
        box = (left, top, left + width, top + height)
        image = photo.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=box)
        for half in ("train", "val") if number < len(CLASSES) else ("train",):
            path = folder / half / CLASSES[number % len(CLASSES)] / f"{number:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, quality=quality)
        sizes.append(path.stat().st_size)
    return sum(sizes) / len(sizes)


def open_ours(name: str, folder: Path, image_size: int) -> DataSets:
    options = {"name": name, "dir": str(folder), "image_size": image_size}
    options.update(min_crop_area=MIN_CROP_AREA, horizontal_flip=True)
    return build_datasets(DataConfig.model_validate(options), seed=0)


def open_torchvision(folder: Path, image_size: int) -> Any:
    transforms = torchvision.transforms
    steps = [
        transforms.RandomResizedCrop(image_size, scale=(MIN_CROP_AREA, 1)),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
    ]
    return torchvision.datasets.ImageFolder(str(folder / "train"), transforms.Compose(steps))


def batches_of(load: Callable[[int], Any], count: int) -> Callable[[], None]:
    """Return a function that loads the next BATCH images."""
    numbers: Iterator[int] = iter(number % count for number in range(1 << 40))

    def run() -> None:
        for _ in range(BATCH):
            load(next(numbers))

    return run


@contextlib.contextmanager
def libraries_alone() -> Iterator[None]:
    """Without the C++ of datasets/images."""
    with mock.patch.object(encoded_image, "native_images", no_native_images):
        with mock.patch.object(transforms, "native_images", no_native_images):
            yield


def no_native_images() -> None:
    return None


@contextlib.contextmanager
def pillow_alone() -> Iterator[None]:
    with libraries_alone(), mock.patch.object(encoded_image, "simplejpeg", None):
        yield


def time_one_core(folder: Path, shards: Path, image_size: int, repetitions: int) -> List[Dict[str, Any]]:
    """Return images per second of each variant in one thread, and the ratio to torchvision's with quartiles."""
    peer = open_torchvision(folder, image_size)
    count = len(peer)
    ours = {"folder": open_ours("image_folder", folder, image_size).train}
    ours["shards"] = open_ours("image_shards", shards, image_size).train
    variants = {"torchvision": batches_of(peer.__getitem__, count)}
    # the same windows for all of ours; torchvision draws its own from the same distribution
    variants.update({name: batches_of(partial(load_first_epoch, train), count) for name, train in ours.items()})

    def load_with(limits: Callable[[], Any], number: int) -> Any:
        with limits():
            return ours["folder"][0, number]

    variants["folder, Pillow"] = batches_of(partial(load_with, pillow_alone), count)
    variants["folder, whole"] = batches_of(partial(load_with, libraries_alone), count)
    timings = measure(variants, "torchvision", repetitions=repetitions)
    return [
        {
            "name": f"{image_size} px, {name}",
            "images_per_second": BATCH / (1e-3 * timing.milliseconds),
            "speed_ratio": 1 / timing.ratio,
            "first_quartile": 1 / timing.third_quartile,
            "third_quartile": 1 / timing.first_quartile,
        }
        for name, timing in timings.items()
    ]


def load_first_epoch(train: Any, number: int) -> Any:
    return train[0, number]


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and repetitions, one size")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEG files")
    parser.add_argument("--workers", type=int, default=1, help="loading processes while a network trains")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    keep_freed_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # torchvision's transforms draw from it
    count, repetitions, sizes = (128, 7, [224]) if options.quick else (256, 15, [224, 64])
    rows: List[Dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="photos-") as place:
        folder, shards = Path(place, "folder"), Path(place, "shards")
        file_bytes = round(write_photos(folder, count, options.quality))
        with contextlib.redirect_stdout(None):
            pack.pack(folder, shards, SHARD_BYTES, seed=0)
        print(f"{count} files of {WIDTH} x {HEIGHT} pixels, quality {options.quality}, {file_bytes:,} bytes on average")
        for size in sizes:
            rows += time_one_core(folder, shards, size, repetitions)
        for row in rows:
            print(f"{row['name']}: {row['images_per_second']:.0f} images/s, {row['speed_ratio']:.2f} x torchvision")
        name, train = f"{sizes[0]} px, shards", open_ours("image_shards", shards, sizes[0]).train
        loaders = [time_loaders(name, train, BATCH, 512, repetitions // 2)]
        for small, images in SMALL_IMAGES.items():
            loaders.append(time_loaders(small, images(), SMALL_BATCH, 1 << 15, repetitions // 2))
        for row in loaders:
            print(
                f"{row['name']}: " + ", ".join(f"{way}: {rate:.0f}" for way, rate in row["images_per_second"].items())
            )
        training = time_training(name, train, BATCH, options.workers)
        print(", ".join(str(part) if key == "name" else f"{key} {part:.0f} images/s" for key, part in training.items()))
    settings = {"width": WIDTH, "height": HEIGHT, "quality": options.quality, "bytes": file_bytes}
    write_results("data", settings, rows + loaders + [training], folder=options.results)


if __name__ == "__main__":
    main()
