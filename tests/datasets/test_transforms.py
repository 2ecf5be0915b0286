"""Keyed random numbers, crops and mirroring, against published numbers and torchvision's own transforms."""

import math
import random
from collections import Counter
from typing import Any, Dict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_images import encoded, smooth_photograph
from PIL import Image

from datasets.images import transforms
from datasets.images.encoded_image import EncodedImage
from datasets.images.native import Window
from datasets.images.torchvision_import import torchvision
from datasets.images.transforms import Augmentation, CentreCrop, random_window, resize, resized_crop, shifted_crop
from datasets.keyed_random import KeyedRandom

functional = torchvision.transforms.functional


def made_array(channels: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)


def stored(image: Image.Image) -> EncodedImage:
    return EncodedImage(encoded(image).getvalue(), "made.png")


def stream_from_state(state: int) -> KeyedRandom:
    stream = KeyedRandom()
    stream.state = state
    return stream


# Published outputs of SplitMix64 for the start states 0 and 1234567.
SPLITMIX64 = [
    (0, [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]),
    (1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]),
]


@pytest.mark.parametrize("state, expected", SPLITMIX64)
def test_keyed_random_gives_the_published_splitmix64_outputs(state, expected):
    stream = stream_from_state(state)
    assert [stream.bits() for _ in expected] == expected


@given(key=st.lists(st.integers(0, 2**64 - 1), max_size=3), before=st.integers(0, 5), count=st.integers(0, 70))
@settings(derandomize=True, deadline=None)
def test_random_bytes_are_the_streams_next_words_little_end_first(key, before, count):
    stream, reference = KeyedRandom(*key), KeyedRandom(*key)
    words = [reference.bits() for _ in range(before + 12)]
    for _ in range(before):
        stream.bits()
    expected = b"".join(word.to_bytes(8, "little") for word in words[before:])[:count]
    assert stream.bytes(count).tobytes() == expected
    assert stream.bits() == words[before + (count + 7) // 8]


def test_neighbouring_keys_give_unrelated_streams():
    seen = {KeyedRandom(*key).bits() for key in np.ndindex(8, 8, 64)}
    assert len(seen) == 8 * 8 * 64
    # of 64 bits, neighbours differ in 32 on average; 4096 pairs give a standard error of 4 / 64 = 0.06
    differing = [
        bin(KeyedRandom(s, e, i).bits() ^ KeyedRandom(s, e, i + 1).bits()).count("1")
        for s, e, i in np.ndindex(8, 8, 64)
    ]
    assert abs(np.mean(differing) - 32) < 0.3


def test_keyed_integers_are_uniform():
    counts = Counter(KeyedRandom(5, 0, index).integer(5) for index in range(10_000))
    # 2000 each with a standard deviation of 40; 4.5 of them
    assert sorted(counts) == [0, 1, 2, 3, 4]
    assert max(abs(count - 2000) for count in counts.values()) < 180


def test_a_key_outside_64_bits_is_refused():
    for word in (-1, 2**64):
        with pytest.raises(ValueError, match="64"):
            KeyedRandom(0, word)


@given(
    down=st.integers(-9, 9), right=st.integers(-9, 9), mirror=st.booleans(), channels=st.sampled_from([1, 3]),
    height=st.integers(1, 8), width=st.integers(1, 8),
)  # fmt: skip
@settings(derandomize=True, deadline=None)
def test_shifted_crop_equals_torchvisions_padded_crop_and_flip(down, right, mirror, channels, height, width):
    image = made_array(channels, height, width)
    padded = functional.pad(torch.from_numpy(image), [9, 9])
    expected = functional.crop(padded, down + 9, right + 9, height, width)
    expected = functional.hflip(expected) if mirror else expected
    result = shifted_crop(image, down, right, mirror)
    assert result.dtype == torch.uint8 and result.is_contiguous()
    assert torch.equal(result, expected)


def test_shifted_crop_of_a_hand_computed_image():
    image = np.arange(1, 10, dtype=np.uint8).reshape(1, 3, 3)
    assert shifted_crop(image, 1, -1, False).tolist() == [[[0, 4, 5], [0, 7, 8], [0, 0, 0]]]
    assert shifted_crop(image, 1, -1, True).tolist() == [[[5, 4, 0], [8, 7, 0], [0, 0, 0]]]


def test_padded_crops_reach_each_place_equally_often_and_mirror_half_of_the_images():
    image = np.zeros((1, 9, 9), dtype=np.uint8)
    image[0, 4, 3] = 1
    augmentation = Augmentation(9, 2, None, True)
    places: Dict[Any, int] = Counter()
    for index in range(10_000):
        _, row, column = augmentation(image, KeyedRandom(0, 0, index)).nonzero()[0].tolist()
        places[row, column] += 1
    # row 4 - shift for 5 shifts; columns 3 - shift or, mirrored, 8 - (3 - shift): 1..5 and 3..7
    column_weights = {1: 1, 2: 1, 3: 2, 4: 2, 5: 2, 6: 1, 7: 1}
    assert set(places) == {(row, column) for row in range(2, 7) for column in column_weights}
    for (_row, column), count in places.items():
        # 200 or 400 of 10,000; 5 standard deviations
        mean = 200 * column_weights[column]
        assert abs(count - mean) < 5 * math.sqrt(mean)


def test_without_options_training_images_are_the_stored_ones():
    image = made_array(3, 6, 6)
    result = Augmentation(6, None, None, False)(image, KeyedRandom(1, 2, 3))
    assert np.array_equal(result.numpy(), image)
    result.zero_()
    assert image.any(), "the result must not share memory with the stored image"


@given(
    height=st.integers(1, 400), width=st.integers(1, 400), min_crop_area=st.floats(0.01, 1), index=st.integers(0, 2**32)
)
@settings(derandomize=True, deadline=None, max_examples=300)
def test_random_windows_lie_in_the_image(height, width, min_crop_area, index):
    top, left, crop_height, crop_width = random_window(height, width, min_crop_area, KeyedRandom(index))
    assert 0 <= top <= top + crop_height <= height and crop_height > 0
    assert 0 <= left <= left + crop_width <= width and crop_width > 0


def test_random_windows_have_the_areas_and_aspect_ratios_asked_for():
    windows = [random_window(1000, 1000, 0.05, KeyedRandom(index)) for index in range(4000)]
    areas = np.array([height * width for _, _, height, width in windows]) / 1e6
    ratios = np.array([width / height for _, _, height, width in windows])
    # rounding to whole pixels moves an area of 50,000 by at most 250 and a ratio by 1 / 200
    assert areas.min() > 0.0497 and areas.max() <= 1
    assert ratios.min() > 0.745 and ratios.max() < 1.342
    # log-uniform: as many below 1 as above; 4000 draws have a standard error of 0.8 %
    assert abs(np.mean(ratios < 1) - 0.5) < 0.04
    # large windows of unequal sides do not fit and are drawn again, so the mean lies below uniform's 0.525
    assert 0.45 < areas.mean() < 0.525


def test_a_strip_is_cropped_to_the_largest_allowed_window_in_its_middle():
    assert random_window(30, 3000, 0.9, KeyedRandom(0)) == (0, 1480, 30, 40)
    assert random_window(3000, 30, 0.9, KeyedRandom(0)) == (1480, 0, 40, 30)


@given(
    height=st.integers(1, 60), width=st.integers(1, 60), out_height=st.integers(1, 60), out_width=st.integers(1, 60),
    channels=st.sampled_from([1, 3]), by_torch=st.booleans(), interleaved=st.booleans(),
)  # fmt: skip
def test_resizing_is_pillows_bilinear_to_within_rounding(
    height, width, out_height, out_width, channels, by_torch, interleaved
):
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, channels), dtype=np.uint8)
    image = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
    expected = np.array(image.resize((out_width, out_height), Image.Resampling.BILINEAR)).reshape(
        out_height, out_width, channels
    )
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    tensor = tensor if interleaved else tensor.contiguous()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "TORCH_RESIZES_BYTES", by_torch and transforms.TORCH_RESIZES_BYTES)
        result = resize(tensor, out_height, out_width)
    assert result.dtype == torch.uint8 and result.is_contiguous()
    # both round to whole numbers after each of two passes, with weights of 8 to 16 bits
    assert np.abs(result.numpy().transpose(1, 2, 0).astype(int) - expected).max() <= (1 if by_torch else 0)


def test_resized_crop_of_an_array_and_of_an_image_agree():
    photograph = smooth_photograph(60, 50)
    array = np.asarray(photograph).transpose(2, 0, 1)
    from_image = resized_crop(stored(photograph), Window(5, 7, 40, 48), 16)
    assert torch.equal(from_image, resized_crop(array, Window(5, 7, 40, 48), 16))
    expected = np.asarray(photograph.crop((7, 5, 55, 45)).resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(from_image.numpy().transpose(1, 2, 0) - expected).max() <= 1  # rounding, as above


def test_evaluation_resizes_the_short_side_and_crops_the_centre():
    image = Image.fromarray(np.kron(made_array(1, 256, 384)[0], np.ones((2, 2), dtype=np.uint8))).convert("RGB")
    assert image.size == (768, 512)
    result = CentreCrop(224)(stored(image))
    expected = functional.center_crop(functional.resize(image, 256, antialias=True), 224)
    assert result.shape == (3, 224, 224) and result.dtype == torch.uint8 and result.is_contiguous()
    assert np.abs(result.numpy().transpose(1, 2, 0) - np.asarray(expected).astype(int)).max() <= 1  # rounding
    # the centre pixel of a horizontal ramp is the centre of the ramp
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 768).astype(np.uint8), (512, 1))).convert("RGB")
    centre = CentreCrop(224)(stored(ramp))[0].float()
    assert abs(centre[:, 111:113].mean() - 127.5) < 1
    # 224 of the 384 resized columns are shown: the left border is at (384 - 224) / 2 = 80 of 384
    assert abs(centre[:, 0].mean() - 255 * 80.5 / 384) < 1.5


@pytest.mark.parametrize("size, short_side", [(160, 183), (176, 201), (260, 297), (380, 434)])
def test_the_short_side_is_rounded_to_whole_pixels(size, short_side):
    image = smooth_photograph(500, 480)
    expected = functional.center_crop(functional.resize(image, short_side, antialias=True), size)
    result = CentreCrop(size)(stored(image)).numpy().transpose(1, 2, 0)
    assert np.abs(result - np.asarray(expected).astype(int)).max() <= 1  # rounding


@pytest.mark.parametrize("options", [(2, None, True), (None, 0.3, True), (None, None, False)])
def test_augmentation_leaves_global_random_states_alone_and_does_not_read_them(options):
    augmentation = Augmentation(8, *options)
    image = made_array(3, 8, 8)
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        results.append(augmentation(image, KeyedRandom(7, 8, 9)))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]
    assert torch.equal(*results)
