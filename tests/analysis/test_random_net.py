"""Random nets of Definition 1, the images they are shown, and what becomes of these: the reference table."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image

from analysis.images import one_over_f_images, photo_patches, standardized
from analysis.norm_name import exact_factory, norm_label, parse_norm
from analysis.power_plot import PowerPanel, evenly, plot_power
from analysis.random_net_runs import results_paths, run_random_nets
from analysis.random_power import measure_layer, propagate
from analysis.results_file import ResultsError, read_results, write_results
from analyze import read_photo
from models.random_net import RandomLayer, RandomNet, RandomNetShape
from normact import NormActFactory

SHAPE = RandomNetShape(width=16, depth=4)


def powers(norm: str, shape: RandomNetShape, seeds: int, count: int, size: int) -> np.ndarray:
    """(seeds, L, 4)."""
    found: List[Any] = []
    for seed in range(seeds):
        images = one_over_f_images(count, size, seed)
        found.append([measure_layer(values).power for values in propagate(shape, exact_factory(norm), images, seed)])
    return np.array(found)


def test_rho_and_its_bound_by_hand() -> None:
    # gamma^2 = 1 + 0.04, beta^2 = 0.04
    assert SHAPE.rho == pytest.approx(1.04 / 1.08)
    assert [SHAPE.bound(layer) for layer in (1, 3)] == pytest.approx([1.0, (1.04 / 1.08) ** 2])


def test_weights_have_the_moments_of_the_definition() -> None:
    shape = RandomNetShape(width=256, kernel_size=3, gamma_mean=1.5, gamma_std=0.3, beta_std=0.1)
    layer = RandomLayer(shape, exact_factory("layer"), 2, seed=0)
    assert layer.norm_act.bias is not None
    weight, gamma, beta = (v.detach() for v in (layer.conv.weight, layer.norm_act.weight, layer.norm_act.bias))
    assert weight.shape == (256, 256, 3, 3)
    # Standard errors: 1 / sqrt(2 * 589824) of the first, 1 / sqrt(256) of the means' unit; five of them.
    assert float(weight.std()) * math.sqrt(9 * 256) == pytest.approx(1, abs=5e-3)
    assert float(gamma.mean()) == pytest.approx(1.5, abs=0.1)
    assert float(gamma.std()) == pytest.approx(0.3, rel=0.25)
    assert float(beta.mean()) == pytest.approx(0, abs=0.035)
    assert float(beta.std()) == pytest.approx(0.1, rel=0.25)


def test_boundaries_are_periodic() -> None:
    net = RandomNet(SHAPE, exact_factory("layer+pn"), seed=0)
    images = one_over_f_images(2, 8, 0)
    shifted = net(images.roll((3, -2), dims=(2, 3)))
    assert torch.allclose(shifted, net(images).roll((3, -2), dims=(2, 3)), atol=1e-5)


def test_seeds_and_layers_draw_different_weights_and_the_same_ones_again() -> None:
    first, again, other_seed = (RandomNet(SHAPE, exact_factory("layer"), seed).layers() for seed in (1, 1, 2))
    assert torch.equal(first[1].conv.weight, again[1].conv.weight)
    assert not torch.equal(first[1].conv.weight, other_seed[1].conv.weight)
    assert not torch.equal(first[1].conv.weight, first[2].conv.weight)
    assert not torch.equal(first[2].conv.weight, other_seed[1].conv.weight)  # nor are they another seed's, one layer on
    with pytest.raises(ValueError, match=r"layer 0 is outside 1\.\.10000"):
        RandomLayer(SHAPE, exact_factory("layer"), 0, 0)


@pytest.mark.parametrize("norm", ["batch", "layer+pn", "group4+ws"])
def test_layer_by_layer_is_the_whole_net(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.random_power._CONV_VALUES", 3 * 16 * 8 * 8)  # three images at a time
    images = one_over_f_images(7, 8, 0)
    net = RandomNet(SHAPE, exact_factory(norm), seed=5).train()
    whole: List[torch.Tensor] = []
    for layer in net.layers():
        layer.norm_act.register_forward_pre_hook(lambda module, inputs: whole.append(module.norm(inputs[0])))
    with torch.no_grad():
        net(images)
    parts = [values.normalized for values in propagate(SHAPE, exact_factory(norm), images, 5)]
    assert len(whole) == len(parts) == 4
    for one, other in zip(whole, parts):
        assert torch.allclose(one, other, atol=1e-5)


def test_the_affine_value_is_that_of_the_layer() -> None:
    values = next(propagate(SHAPE, exact_factory("layer"), one_over_f_images(3, 8, 0), 0))
    with torch.no_grad():
        output = values.layer(one_over_f_images(3, 8, 0))
    assert torch.allclose(values.affine.relu(), output, atol=1e-5)


@pytest.mark.parametrize(("activation", "expected"), [("identity", 0.0), ("relu", 0.25 - 0.5 / math.pi)])
def test_residual_variance_of_a_gaussian_channel(activation: str, expected: float) -> None:
    layer = NormActFactory(norm="layer", proxy=False)(2, activation)
    y = torch.randn(400, 2, 20, 20, generator=torch.Generator().manual_seed(0))
    layer.weight.data.fill_(0.5)  # the measure does not depend on the scale
    values: Any = type(
        "Values", (), {"layer": type("Layer", (), {"norm_act": layer}), "affine": 0.5 * y, "normalized": y}
    )
    # 160,000 values: a standard error below 1e-3.
    assert measure_layer(values).residual_variance == pytest.approx(expected, abs=2e-3)


def numpy_net(
    norm: str, shape: RandomNetShape, images: np.ndarray, seed: int
) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """y and y~ of each layer of Definition 1 as it is written, in float64; only the draws are the program's."""
    z = images.astype(np.float64)
    for number in range(1, shape.depth + 1):
        layer = RandomLayer(shape, exact_factory("layer"), number, seed)
        assert layer.norm_act.bias is not None
        tensors = (layer.conv.weight, layer.norm_act.weight, layer.norm_act.bias)
        w, gamma, beta = (tensor.detach().double().numpy() for tensor in tensors)
        gamma, beta = gamma[:, None, None], beta[:, None, None]
        x = sum(
            np.einsum("nchw,oc->nohw", np.roll(z, (1 - i, 1 - j), (2, 3)), w[:, :, i, j])
            for i in range(3)
            for j in range(3)
        )
        groups = 4 if norm.startswith("group4") else 1
        grouped = x.reshape(len(x), groups, -1)
        if norm == "batch":
            y = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
        else:
            y = ((grouped - grouped.mean(2, keepdims=True)) / grouped.std(2, keepdims=True)).reshape(x.shape)
        affine = gamma * y + beta
        yield y, affine
        z = np.maximum(affine, 0)
        if norm.endswith("+pn"):
            s, t = np.abs(gamma), beta / np.abs(gamma)
            above, density = scipy.stats.norm.cdf(t), scipy.stats.norm.pdf(t)
            mean = beta * above + s * density
            z = (z - mean) / np.sqrt((beta**2 + s**2) * above + beta * s * density - mean**2)


@pytest.mark.parametrize("norm", ["batch", "layer", "group4", "layer+pn", "group4+pn"])
def test_the_measures_are_those_of_definition_1_in_float64(norm: str) -> None:
    images = one_over_f_images(9, 8, 3)
    reference = numpy_net(norm, SHAPE, images.numpy(), 7)
    for (y, affine), values in zip(reference, propagate(SHAPE, exact_factory(norm), images, 7)):
        found = measure_layer(values)
        mu, sigma = y.mean((2, 3)), y.std((2, 3))
        parts = [mu.mean(0) ** 2, mu.var(0), sigma.mean(0) ** 2, sigma.var(0)]
        # Float32 in the network; its statistics are off by some 1e-8.
        assert found.power == pytest.approx([part.mean() for part in parts], abs=1e-6)
        power = (y**2).mean((0, 2, 3))
        assert found.effective_channels == pytest.approx(power.sum() ** 2 / (16 * (power**2).sum()), abs=1e-6)
        residuals = []
        for channel in range(16):
            x = affine[:, channel].ravel()
            lines = np.stack([x, np.ones_like(x)], axis=1)
            line = np.linalg.lstsq(lines, np.maximum(x, 0), rcond=None)[0]
            residuals.append(((np.maximum(x, 0) - lines @ line) ** 2).mean() / x.var())
        assert found.residual_variance == pytest.approx(np.mean(residuals), abs=1e-6)


SMALL_TABLE = RandomNetShape(width=128, depth=20)


def test_layer_norm_collapses_and_proxy_normalization_does_not() -> None:
    """The reference table's tests on a quarter of its images."""
    bound = np.array([SMALL_TABLE.bound(layer) for layer in range(1, 21)])
    left = 1 - powers("layer", SMALL_TABLE, 1, 32, 8)[0, :, 0]
    assert (left <= 1.001 * bound).all()
    assert left[-1] < 0.1
    proxy = powers("layer+pn", SMALL_TABLE, 1, 32, 8)
    assert (1 - proxy[0, :, 0] >= 0.9).all()
    assert np.abs(proxy.sum(axis=2) - 1).max() < 1e-6


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_batch_and_instance_norm_have_no_collapse(norm: str) -> None:
    found = powers(norm, RandomNetShape(width=64, depth=6), 1, 16, 8)
    assert found[:, :, 0].max() < 1e-6
    assert np.abs(found.sum(axis=2) - 1).max() < 1e-6
    if norm == "instance":
        assert found[:, :, 2].min() > 1 - 1e-5
    else:
        assert found[:, :, 1].min() > 0.02  # images differ in their means


# 1 - P1 at layers 1, 5, 10, 15, 20: mean of two seeds of other nets and images of the same kind.
REFERENCE = {
    "layer": (1.000, 0.318, 0.111, 0.060, 0.036),
    "group8": (1.000, 0.379, 0.193, 0.184, 0.196),
    "group32": (1.000, 0.621, 0.564, 0.580, 0.581),
    "layer+ws": (1.000, 0.852, 0.832, 0.824, 0.840),
    "layer+pn": (1.000, 0.960, 0.993, 0.997, 0.998),
    "batch": (1.000, 1.000, 1.000, 1.000, 1.000),
    "instance": (1.000, 1.000, 1.000, 1.000, 1.000),
}


@pytest.mark.slow
@pytest.mark.parametrize("norm", sorted(REFERENCE))
def test_the_reference_table_at_width_128(norm: str) -> None:
    found = powers(norm, SMALL_TABLE, 2, 64, 16)
    left = 1 - found[:, :, 0].mean(axis=0)
    # Two seeds of a collapsing net differ by about 0.05 in the middle of the net.
    assert left[[0, 4, 9, 14, 19]] == pytest.approx(np.array(REFERENCE[norm]), abs=0.1)
    assert np.abs(found.sum(axis=2) - 1).max() < 1e-6
    if norm == "layer":
        assert (left <= 1.001 * np.array([SMALL_TABLE.bound(layer) for layer in range(1, 21)])).all()
        assert left[-1] < 0.1
    if norm == "layer+pn":
        assert (left >= 0.9).all()
    if norm == "layer+ws":
        assert 0.05 <= 1 - left[-1] <= 0.35


def test_made_images_have_a_natural_spectrum_and_are_centred() -> None:
    images = one_over_f_images(200, 32, seed=3).double()
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1e-6
    assert torch.allclose(images.std(dim=(0, 2, 3), unbiased=False), torch.ones(3, dtype=torch.float64), atol=1e-6)
    amplitude = torch.fft.fft2(images).abs().mean(dim=(0, 1))[0, 1:16]
    frequency = torch.arange(1, 16, dtype=torch.float64)
    slope = np.polyfit(frequency.log(), amplitude.log(), 1)[0]
    assert slope == pytest.approx(-1, abs=0.05)
    assert torch.equal(images.float(), one_over_f_images(200, 32, seed=3))
    assert not torch.equal(images.float(), one_over_f_images(200, 32, seed=4))


def test_made_images_differ_in_brightness_and_contrast() -> None:
    images = one_over_f_images(400, 16, seed=0).double()
    means, deviations = images.mean(dim=(1, 2, 3)), images.std(dim=(1, 2, 3))
    # 0.55 beside textures of mean square exp(2 * 0.4^2): 0.55 / sqrt(0.55^2 + 1.377) = 0.42; 400 images know it to 4 %.
    assert float(means.std()) == pytest.approx(0.42, rel=0.15)
    assert float(deviations.log().std()) == pytest.approx(0.4, rel=0.15)


def test_patches_come_from_all_photographs_of_a_folder(tmp_path: Path) -> None:
    rows = np.arange(40, dtype=np.uint8)
    for name, first in (("a.png", 0), ("b.jpg", 120)):
        pixels = np.stack([np.add.outer(rows, rows) + first] * 3, axis=2).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no photograph")
    patches = photo_patches(tmp_path, 6, 8, seed=0, read=read_photo)
    assert patches.shape == (6, 3, 8, 8)
    means = patches.mean(dim=(1, 2, 3))
    assert bool((means[::2] < 0).all() and (means[1::2] > 0).all())  # the darker and the brighter photograph in turn
    assert torch.equal(patches, photo_patches(tmp_path, 6, 8, seed=0, read=read_photo))
    with pytest.raises(ValueError, match="smaller than patches of 41 x 41"):
        photo_patches(tmp_path / "a.png", 1, 41, seed=0, read=read_photo)
    with pytest.raises(ValueError, match="is not a photograph"):
        photo_patches(tmp_path / "nothing", 1, 8, seed=0, read=read_photo)


def test_a_constant_colour_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="same value everywhere"):
        standardized(torch.ones(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("name", "settings", "label"),
    [
        ("layer", {"norm": "layer", "proxy": False}, "LN"),
        ("layer+pn", {"norm": "layer", "proxy": True}, "LN+PN"),
        ("group8+pn", {"norm": "group", "proxy": True, "num_groups": 8}, "GN8+PN"),
        ("group+ws", {"norm": "group+ws", "proxy": False}, "GN+WS"),
        ("group32+pn+ws", {"norm": "group+ws", "proxy": True, "num_groups": 32}, "GN32+WS+PN"),
        ("instance", {"norm": "instance", "proxy": False}, "IN"),
    ],
)
def test_short_names_of_norms(name: str, settings: Dict[str, Any], label: str) -> None:
    assert parse_norm(name) == settings
    assert norm_label(name) == label
    assert exact_factory(name).norm == settings["norm"]


@pytest.mark.parametrize("name", ["layer8", "group8+pn+pn", "frn", "LN", "layer+", "group-8"])
def test_a_name_of_another_form_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"write batch, layer, instance"):
        parse_norm(name)


def run(path: Path, seeds: int, advance: Any = lambda: None, described: str = "8 of 1/f") -> Dict[str, Any]:
    return run_random_nets(
        path,
        "layer",
        SHAPE,
        seeds=seeds,
        images_of_seed=lambda seed: one_over_f_images(8, 8, seed),
        images_described=described,
        advance=advance,
    )


def test_a_stopped_measurement_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole.json", 3)
    ticks: List[int] = []

    def stop_in_the_third_seed() -> None:
        ticks.append(0)
        if len(ticks) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part.json", 3, stop_in_the_third_seed)
    assert len(read_results(tmp_path / "part.json")["layers"]) == 2
    assert run(tmp_path / "part.json", 3) == whole
    assert (tmp_path / "part.json").read_text() == (tmp_path / "whole.json").read_text()
    assert np.array(whole["layers"]).shape == (3, 4, 4)


def test_results_of_other_settings_are_not_continued(tmp_path: Path) -> None:
    run(tmp_path / "power.json", 1)
    with pytest.raises(ResultsError, match=r"other settings .*images"):
        run(tmp_path / "power.json", 2, described="9 of 1/f")
    (tmp_path / "power.json").write_text("{")
    with pytest.raises(ResultsError, match="cannot be read"):
        run(tmp_path / "power.json", 1)


def test_results_without_their_lists_are_refused(tmp_path: Path) -> None:
    results = run(tmp_path / "power.json", 1)
    del results["residual_variance"]
    write_results(tmp_path / "power.json", results)
    with pytest.raises(ResultsError, match="lacks one of layers, effective_channels, residual_variance"):
        run(tmp_path / "power.json", 2)


def test_fewer_seeds_than_the_file_holds_are_its_first_ones(tmp_path: Path) -> None:
    whole = run(tmp_path / "power.json", 3)
    assert run(tmp_path / "power.json", 2)["layers"] == whole["layers"][:2]
    assert len(read_results(tmp_path / "power.json")["layers"]) == 3


def test_results_are_strict_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path / "power.json", {"value": float("nan")})
    assert not (tmp_path / "power.json").exists()


def test_one_norm_writes_into_the_folder_itself(tmp_path: Path) -> None:
    assert results_paths(tmp_path, ["layer"]) == {"layer": tmp_path / "power.json"}
    assert results_paths(tmp_path, ["layer", "batch"])["batch"] == tmp_path / "batch" / "power.json"


def test_a_power_plot_shows_the_shares_in_their_colours(tmp_path: Path) -> None:
    # P1 takes the lower half and P3 the upper one, whatever the total.
    panel = PowerPanel("half", np.tile([2.0, 0.0, 2.0, 0.0], (2, 5, 1)))
    plot_power([panel], tmp_path / "power.png")
    picture = np.asarray(Image.open(tmp_path / "power.png").convert("RGB")).astype(int)
    for colour in ((0xD5, 0x5E, 0x00), (0x56, 0xB4, 0xE9)):
        found = np.argwhere((np.abs(picture - colour).sum(axis=2) < 6))
        assert len(found) > 2000
    orange, blue = (
        np.argwhere(np.abs(picture - c).sum(axis=2) < 6)[:, 0].mean() for c in ((0xD5, 0x5E, 0), (0x56, 0xB4, 0xE9))
    )
    assert orange > blue  # below it in the picture


def test_bands_show_how_much_the_samples_differ(tmp_path: Path) -> None:
    same = np.tile([0.4, 0.0, 0.6, 0.0], (2, 5, 1))
    different = np.stack([np.tile([p1, 0.0, 1 - p1, 0.0], (5, 1)) for p1 in (0.2, 0.6)])
    colours = []
    for name, powers in (("same", same), ("different", different)):
        plot_power([PowerPanel(name, powers)], tmp_path / f"{name}.png")
        picture = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int)
        # Orange under a black of 0.3, twice or three times, since boundaries lie on each other: (149, 66, 0) or darker.
        dark = (picture[..., 0] > 60) & (picture[..., 0] < 160) & (picture[..., 2] < 10)
        colours.append(int(dark.sum()))
    assert colours[0] < 100 < 1000 < colours[1]


def test_evenly_keeps_the_first_and_the_last() -> None:
    assert evenly(list(range(10)), 4) == [0, 3, 6, 9]
    assert evenly([1, 2], 4) == [1, 2]


def test_json_holds_what_the_command_promises(tmp_path: Path) -> None:
    run(tmp_path / "power.json", 1)
    results = json.loads((tmp_path / "power.json").read_text())
    assert {"norm", "images", "shape", "rho", "layers", "effective_channels", "residual_variance"} == set(results)
