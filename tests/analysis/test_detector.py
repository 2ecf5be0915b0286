"""The detector of the discussion of Theorem 2: what its images are, and which norms a net can be fitted with."""

import pytest
import torch

from analysis import detector
from analysis.detector import detector_images, detector_residual


def least_residual_of_instance_norm() -> float:
    """Return what instance norm cannot do better than: 1/2 for large images.

    An output of mean beta and standard deviation gamma in every image is at least
    (mean(t) - beta)^2 + (std(t) - gamma)^2 from the map t of an image. Half of the images have mean 1/n and standard
    deviation sqrt(1/n - 1/n^2), n positions, the others 0 and 0; with the best beta and gamma, the means of these,
    1/(4 n) is left of var(t) = 1/(2 n) - 1/(4 n^2).
    """
    positions = 8 * 8
    return (1 / (4 * positions)) / (1 / (2 * positions) - 1 / (4 * positions**2))


def test_maps_tell_where_the_pattern_is_and_half_of_the_images_have_none() -> None:
    images, maps = detector_images(3)
    assert torch.equal(detector_images(3)[0], images)
    assert maps.sum(dim=(1, 2, 3)).tolist() == [1.0, 0.0] * 32
    centred = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="circular")
    pattern = torch.tensor(detector._PATTERN).view(1, 1, 3, 3)
    # Nine values of 1 against noise of .3 x 3: the matched filter finds each of them.
    found = torch.nn.functional.conv2d(centred, pattern)[::2].flatten(1).argmax(dim=1)
    assert torch.equal(found, maps[::2].flatten(1).argmax(dim=1))


def test_the_bound_of_instance_norm_is_that_of_its_best_output() -> None:
    _, maps = detector_images(0)
    flat = maps.double().flatten(1)
    beta, gamma = flat.mean(dim=1).mean(), flat.std(dim=1, unbiased=False).mean()
    # In each image the output nearest to the map has the map's own shape, moved and scaled to beta and gamma.
    shape = flat - flat.mean(dim=1, keepdim=True)
    deviation = shape.std(dim=1, unbiased=False, keepdim=True)
    other = torch.ones(64, dtype=torch.float64).view(1, -1).repeat(1, 1)
    other[:, ::2] = -1.0  # any shape is as near to a constant map
    shape = torch.where(deviation > 0, shape / deviation.clamp(min=1e-12), other)
    error = (beta + gamma * shape - flat).square().mean() / flat.var(unbiased=False)
    assert float(error) == pytest.approx(least_residual_of_instance_norm(), rel=1e-9)


@pytest.mark.parametrize(("norm", "is_expressed"), [("batch", True), ("layer+pn", True), ("instance", False)])
def test_batch_norm_and_ln_pn_express_the_detector_and_instance_norm_cannot(
    norm: str, is_expressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.detector._STEPS", 600)  # enough for these; LN alone needs the 2000
    residual = detector_residual(norm, 0)
    if is_expressed:
        assert residual < 0.25
    else:
        assert residual >= least_residual_of_instance_norm()


def test_fitting_leaves_torchs_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.detector._STEPS", 1)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    detector_residual("layer", 0)
    assert torch.equal(torch.rand(3), expected)
