"""How fast images are loaded: JPEG files of 500 x 400 pixels to augmented uint8 tensors, images per second and core.

    python -m benchmarks.data [--quick] [--quality 90] [--workers 1]

The files are random crops of the ten photographs of datasets/photo_files.py, resized to 500 x 400. All variants crop a
random window of 5 % to 100 % of the image, resize it and mirror half of the images:

    torchvision          ImageFolder with Pillow and torchvision's random transforms
    folder, Pillow       this project's image_folder by Pillow and torch alone
    folder, whole        by simplejpeg, which decodes whole images, and torch's resize: without the C++
    folder, shards       this project's image_folder and image_shards

The first table takes one thread of one process. The second loads in other processes, alone and while a network trains
that is small enough to ask for as many images as they load (ResNet-8 of width 8 on images of a quarter of the size).
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import time
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence
from unittest import mock

import torch
from PIL import Image
from torch.nn import functional

from backends.host_memory import keep_freed_memory
from backends.image_loader import build_loader
from benchmarks.protocol import measure, seconds
from benchmarks.results import RESULTS, write_results
from configs.schema import DataConfig
from datasets import DataSets, build_datasets, pack
from datasets.images import encoded_image, transforms
from datasets.images.torchvision_import import torchvision
from datasets.keyed_random import KeyedRandom
from datasets.photo_files import obtain_photos
from models import build_model
from normact import NormActFactory

WIDTH, HEIGHT = 500, 400
SMALLEST_SHARE = 0.7  # of the largest possible crop's width
MIN_CROP_AREA = 0.05
CLASSES = ("first", "second")
SHARD_BYTES = 8 << 20
BATCH = 32


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


def index_batches(count: int, epochs: int) -> List[List[Any]]:
    keys = [(epoch, index) for epoch in range(epochs) for index in range(count)]
    return [keys[start : start + BATCH] for start in range(0, len(keys) - BATCH + 1, BATCH)]


def time_loader(train: Any, workers: int, step: Optional[Callable[[torch.Tensor, torch.Tensor], None]]) -> float:
    """Return a loader's images per second with `workers` processes, each batch given to `step`; without the start."""
    images, start = 0, 0.0
    for pixels, labels in build_loader(train, index_batches(len(train), 4), workers):
        if start == 0.0:
            start = time.perf_counter()  # with the first batch: starting processes takes longer than a batch
            continue
        if step is not None:
            step(pixels, labels)
        images += len(labels)
    return images / (time.perf_counter() - start)


def build_step() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Return one weight update of a small network."""
    torch.manual_seed(0)
    network = build_model("resnet8", num_classes=2, norm_act=NormActFactory(norm="group", num_groups=4), width=8)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)

    def step(pixels: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        small = functional.avg_pool2d(pixels.float() / 255, 4)
        functional.cross_entropy(network(small), labels).backward()
        optimizer.step()

    return step


def time_training(shards: Path, image_size: int, workers: int) -> Dict[str, Any]:
    """Return images per second of the loader alone, of the network alone, and of both together."""
    train = open_ours("image_shards", shards, image_size).train
    step = build_step()
    pixels, labels = torch.stack([train[0, index][0] for index in range(BATCH)]), torch.zeros(BATCH, dtype=torch.long)
    step(pixels, labels)
    network = BATCH / seconds(lambda: step(pixels, labels), calls=8)
    return {
        "name": f"{image_size} px, shards, loading processes: {workers}",
        "loader_alone": time_loader(train, workers, None),
        "network_alone": network,
        "together": time_loader(train, workers, step),
    }


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer images and repetitions, one size")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEG files")
    parser.add_argument("--workers", type=int, default=1, help="loading processes of the second table")
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
        training = time_training(shards, sizes[0], options.workers)
        print(", ".join(str(part) if key == "name" else f"{key} {part:.0f} images/s" for key, part in training.items()))
    settings = {"width": WIDTH, "height": HEIGHT, "quality": options.quality, "bytes": file_bytes}
    write_results("data", settings, rows + [training], folder=options.results)


if __name__ == "__main__":
    main()
