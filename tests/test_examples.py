"""The examples train, on little data, and are short."""

from pathlib import Path

import pytest
from torch import nn

from examples import federated, minimal
from examples.minimal import SmallNet
from normact import NormActFactory, convert_norm

FOLDER = Path(minimal.__file__).parent
LIBRARY = "pip install -r requirements-libraries.txt"


def test_the_minimal_example_learns_to_tell_the_classes_apart() -> None:
    assert minimal.main(["--steps", "40"]) > 0.9  # chance is 1 in 3; seeded, and 1.0 when written


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_read_at_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= (96 if path.stem == "minimal" else 80)


def test_federated_averaging_learns_with_each_norm() -> None:
    images = ["--train-images", "600", "--test-images", "600"]
    results = federated.main([*images, "--rounds", "6", "--local-steps", "5", "--seeds", "2"])
    assert list(results) == ["GN", "GN+PN", "BN"] and all(len(values) == 2 for values in results.values())
    assert min(results["GN+PN"]) > 0.5  # chance is 1 in 3


def test_a_network_with_gn_and_pn_has_no_buffers_that_federated_learning_would_share() -> None:
    assert dict(SmallNet(NormActFactory(), 3).named_buffers()) == {}
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    assert len(dict(network.named_buffers())) == 3
    converted, _ = convert_norm(network, NormActFactory())
    assert dict(converted.named_buffers()) == {}
    assert dict(SmallNet(NormActFactory(norm="batch"), 3).named_buffers()) != {}


def test_a_converted_network_of_timm_learns() -> None:
    pytest.importorskip("timm")
    from examples import timm_fine_tuning

    assert timm_fine_tuning.main(["--steps", "25"]) > 0.5  # chance is 1 in 3


def test_monais_unet_finds_balls_in_volumes() -> None:
    pytest.importorskip("monai", reason=LIBRARY)
    from examples import monai_unet

    assert monai_unet.main(["--steps", "25", "--size", "16"]) > 0.5


def test_torchvisions_detector_learns_where_squares_are() -> None:
    pytest.importorskip("torchvision")
    from examples import torchvision_detector

    losses = torchvision_detector.main(["--steps", "12", "--size", "64"])
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])


def test_private_training_learns_with_both_norms() -> None:
    pytest.importorskip("opacus", reason=LIBRARY)
    from examples import opacus_private

    images = ["--train-images", "600", "--test-images", "600"]
    results = opacus_private.main([*images, "--batch-size", "64", "--epochs", "2", "--epsilon", "50"])
    assert list(results) == ["GN", "GN+PN"]
    assert results["GN+PN"][0] > 0.4  # chance is 1 in 3, and 18 noisy steps are few
