"""The power decomposition: numbers by hand, any split of the images, and the normalized value of every kind of norm."""

from __future__ import annotations

from typing import Any, Callable, List, Tuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from analysis.normalized import batch_statistics, find_normalizations
from analysis.power import PowerMeter, PowerStatistics, measure_power
from normact import NormActFactory, convert_norm


def statistics_of(y: Tensor) -> PowerStatistics:
    statistics = PowerStatistics(y.shape[1])
    statistics.add(y)
    return statistics


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(y: Tensor) -> Tensor:
    """Eq. 5 as it is written, in float64 over all images at once."""
    flat = y.double().flatten(2) if y.dim() > 2 else y.double().unsqueeze(2)
    mu, sigma = flat.mean(2), flat.var(2, unbiased=False).sqrt()
    return torch.stack([mu.mean(0) ** 2, mu.var(0, unbiased=False), sigma.mean(0) ** 2, sigma.var(0, unbiased=False)])


def test_two_images_by_hand() -> None:
    # Channel 0: image means 2 and 5, deviations 1 and 0. Channel 1: means 0 and 0, deviations 0 and 2.
    y = torch.tensor([[[1.0, 3.0], [0.0, 0.0]], [[5.0, 5.0], [-2.0, 2.0]]])
    expected = [[12.25, 0.0], [2.25, 0.0], [0.25, 1.0], [0.25, 1.0]]
    assert statistics_of(y).channel_power().tolist() == expected
    assert statistics_of(y).layer_power() == [6.125, 1.125, 0.625, 0.625]


def test_the_four_terms_sum_to_the_mean_square() -> None:
    y = random(7, 5, 4, 3) * 3 + 2
    total = statistics_of(y).channel_power().sum(dim=0)
    assert torch.allclose(total, (y.double() ** 2).mean(dim=(0, 2, 3)), rtol=1e-13)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 1, 1)])
def test_without_positions_there_is_no_variation_within_an_image(shape: Tuple[int, ...]) -> None:
    power = statistics_of(random(*shape)).channel_power()
    assert power[2:].abs().max() == 0
    assert torch.allclose(power, reference(random(*shape)))


def test_a_large_mean_does_not_cancel() -> None:
    # The data are float32 values near 1e4, exact for both; E[mu^2] - E[mu]^2 in float32 would be off by 8.
    y = random(50, 2, 8, 8) + 1e4
    assert torch.allclose(statistics_of(y).channel_power(), reference(y), rtol=1e-9)


@given(data=st.data(), images=st.integers(1, 30), processes=st.integers(1, 5))
def test_any_split_into_batches_and_processes_gives_the_same_numbers(data: Any, images: int, processes: int) -> None:
    y = random(images, 3, 2, 2, seed=images) + torch.tensor([0.0, 5.0, -300.0]).view(1, 3, 1, 1)
    owners = data.draw(st.lists(st.integers(0, processes - 1), min_size=images, max_size=images))
    total = PowerStatistics(3)
    for process in range(processes):
        own, part = y[[index for index in range(images) if owners[index] == process]], PowerStatistics(3)
        for batch in own.split(data.draw(st.integers(1, 7))) if len(own) else []:
            part.add(batch)
        total.merge(PowerStatistics.from_state(part.state()))
    assert total.images == images
    # Relative to the largest term, since P2 and P4 are differences from means.
    assert torch.allclose(total.channel_power(), reference(y), rtol=1e-12, atol=1e-12 * 300**2)


def test_blocks_of_a_large_batch_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    y = random(9, 3, 4, 4)
    whole = statistics_of(y).channel_power()
    monkeypatch.setattr("analysis.power._BLOCK_VALUES", 100)
    assert torch.allclose(statistics_of(y).channel_power(), whole, rtol=1e-12)


def test_effective_channels_by_hand() -> None:
    equal = torch.tensor([[[1.0], [-1.0]]])
    single = torch.tensor([[[1.0], [0.0]]])
    uneven = torch.tensor([[[1.0], [3.0**0.5]]])  # powers 1 and 3: (1 + 3)^2 / (2 (1 + 9))
    found = [statistics_of(y).effective_channels() for y in (equal, single, uneven, torch.zeros(1, 2, 1))]
    assert found == pytest.approx([1.0, 0.5, 0.8, 0.0])


def test_statistics_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="2 channels cannot be merged into 3"):
        PowerStatistics(3).merge(PowerStatistics(2))
    with pytest.raises(ValueError, match="no image was counted"):
        PowerStatistics(3).channel_power()


CHANNELS = 8


def torchvision_frozen() -> nn.Module:
    from datasets.images.torchvision_import import torchvision

    return torchvision.ops.FrozenBatchNorm2d(CHANNELS)


def timm_layer(name: str, **options: Any) -> nn.Module:
    timm_layers = pytest.importorskip("timm.layers")
    return getattr(timm_layers, name)(CHANNELS, **options)


def norm_act(**options: Any) -> Callable[[], nn.Module]:
    return lambda: NormActFactory(proxy=False, **options)(CHANNELS, "relu")


# kind -> (the layer, whether it ends with a ReLU, whether its channels are the last dim)
LAYERS = {
    "group (fused)": (norm_act(norm="group", num_groups=4), True, False),
    "group, strided": (norm_act(norm="group", num_groups=4, grouping="strided", kernel="reference"), True, False),
    "layer": (norm_act(norm="layer"), True, False),
    "instance": (norm_act(norm="instance"), True, False),
    "batch": (norm_act(norm="batch"), True, False),
    "ghost batch": (norm_act(norm="batch", norm_batch_size=3), True, False),
    "nn.BatchNorm2d": (lambda: nn.BatchNorm2d(CHANNELS), False, False),
    "nn.BatchNorm2d without running": (lambda: nn.BatchNorm2d(CHANNELS, track_running_stats=False), False, False),
    "nn.InstanceNorm2d": (lambda: nn.InstanceNorm2d(CHANNELS, affine=True), False, False),
    "nn.GroupNorm": (lambda: nn.GroupNorm(2, CHANNELS), False, False),
    "nn.LayerNorm of tokens": (lambda: nn.LayerNorm(CHANNELS), False, True),
    "torchvision FrozenBatchNorm2d": (torchvision_frozen, False, False),
    "timm BatchNormAct2d": (lambda: timm_layer("BatchNormAct2d"), True, False),
    "timm GroupNormAct": (lambda: timm_layer("GroupNormAct", num_groups=4), True, False),
    "timm LayerNorm2d": (lambda: timm_layer("LayerNorm2d"), False, False),
}  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_affine_and_activation_of_the_normalized_value_are_what_the_layer_gives(kind: str, training: bool) -> None:
    build, has_relu, channels_last = LAYERS[kind]
    layer = build().train(training)
    x = random(6, CHANNELS, 5, 5) * 2 + 1
    x = x.permute(0, 2, 3, 1) if channels_last else x
    for name, value in [*layer.named_parameters(), *layer.named_buffers()]:
        if value.is_floating_point():
            value.data = random(*value.shape, seed=len(name)).abs() + 0.5
    y = find_normalizations(layer)[0][""](x)
    assert y.shape[1] == CHANNELS
    weight, bias = (getattr(layer, name).detach().view(1, -1, 1, 1) for name in ("weight", "bias"))
    expected = weight * y + bias
    with torch.no_grad():
        output = layer(x)
    output = output.permute(0, 3, 1, 2) if channels_last else output
    # Float32 in another order of operations.
    assert torch.allclose(output, expected.relu() if has_relu else expected, atol=2e-5)


@pytest.mark.parametrize("norm", ["frn", "evonorm_s0", "dyt", "derf", "none"])
def test_a_norm_without_a_normalized_value_is_named_with_the_reason(norm: str) -> None:
    layer = NormActFactory(norm=norm)(CHANNELS, "relu")
    found, reasons = find_normalizations(nn.Sequential(nn.Conv2d(3, CHANNELS, 1), layer))
    assert not found
    assert list(reasons) == ["1"]
    with pytest.raises(ValueError, match="no norm of this network could be measured"):
        measure_power(layer, [random(2, CHANNELS, 3, 3)])


def network(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    layers: List[nn.Module] = []
    factory = NormActFactory(**options)
    for index in range(3):
        layers += [nn.Conv2d(3 if index == 0 else CHANNELS, CHANNELS, 3), factory(CHANNELS, "relu")]
    return nn.Sequential(*layers)


def test_a_network_gives_the_same_output_while_it_is_measured() -> None:
    model, x = network(norm="group", num_groups=2).eval(), random(4, 3, 9, 9)
    before = model(x)
    with PowerMeter(model) as meter:
        during = model(x)
    assert torch.equal(before, during)
    assert list(meter.layers) == ["1", "3", "5"]
    model(x)
    assert meter.layers["1"].images == 4  # the hooks are gone


def test_the_training_form_uses_the_batch_and_leaves_the_running_statistics() -> None:
    model, x = network(norm="batch"), random(8, 3, 9, 9) + 2
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    meter = measure_power(model, [x], "training")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(module.training for module in model.modules())
    for statistics in meter.layers.values():
        power = statistics.channel_power()
        assert power[0].max() < 1e-12
        # 1 - eps / var with eps = 1e-5 and variances of a tenth or more.
        assert torch.allclose(power.sum(dim=0), torch.ones(CHANNELS, dtype=torch.float64), atol=1e-3)


def test_the_training_form_gives_torch_batch_norm_its_buffers_back_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(RuntimeError, match="stop"), batch_statistics(model):
        model(random(4, 3, 5, 5) + 9)
        raise RuntimeError("stop")
    assert model[0].running_mean.tolist() == [0.0, 0.0, 0.0]
    assert int(model[0].num_batches_tracked) == 0


def test_in_evaluation_form_the_batch_size_changes_nothing() -> None:
    model, images = network(norm="batch", proxy=True), random(12, 3, 9, 9)
    with torch.no_grad():
        model.train()(images)  # running statistics of their own
    powers = [
        torch.stack([s.channel_power() for s in measure_power(model, images.split(size)).layers.values()])
        for size in (1, 5, 12)
    ]
    # Convolutions of other batch sizes round differently in float32.
    assert torch.allclose(powers[0], powers[2], rtol=1e-4, atol=1e-6)
    assert torch.allclose(powers[1], powers[2], rtol=1e-4, atol=1e-6)


def test_a_norm_that_runs_twice_has_an_entry_for_each_run() -> None:
    norm = nn.GroupNorm(1, 3)
    model = nn.Sequential(norm, nn.ReLU(), norm)
    images = random(5, 3, 4, 4)
    meter = measure_power(model, images.split(3))
    assert [(name, statistics.images) for name, statistics in meter.layers.items()] == [("0", 5), ("0#2", 5)]
    with torch.no_grad():
        second = reference(model(images))
    assert torch.allclose(meter.layers["0"].channel_power(), reference(norm(images).detach()), rtol=1e-5)
    assert torch.allclose(meter.layers["0#2"].channel_power(), second, rtol=1e-5)


def test_the_table_names_every_norm_and_what_was_not_measured() -> None:
    model = nn.Sequential(nn.GroupNorm(1, 2), NormActFactory(norm="frn")(2, "relu"))
    lines = measure_power(model, [torch.tensor([[[[1.0]], [[3.0]]]])]).table().splitlines()
    assert lines[1].split() == ["0", "2", "1.000", "0.000", "0.000", "0.000", "1.000"]  # -1 and 1, less eps
    assert lines[2].startswith("1     not measured: filter response norm does not centre")
    assert len(lines) == 3


def test_states_of_several_processes_merge_to_the_whole() -> None:
    model, images = network(norm="layer").eval(), random(9, 3, 9, 9)
    whole = measure_power(model, [images])
    parts = [measure_power(model, [images[start::2]]) for start in (0, 1)]
    parts[0].merge_states([part.state() for part in parts])
    for path, statistics in whole.layers.items():
        # Two forward passes: float32 convolutions of other batch sizes.
        assert torch.allclose(parts[0].layers[path].channel_power(), statistics.channel_power(), rtol=1e-4, atol=1e-7)
    with pytest.raises(ValueError, match="does not fit these layers"):
        parts[0].merge_states([torch.zeros(3)])


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="evaluation, training"):
        measure_power(network(norm="layer"), [], "frozen")


def test_what_is_no_batch_is_refused_with_the_way_to_give_one() -> None:
    loader: Any = [(random(4, 3, 9, 9), torch.zeros(4))]
    with pytest.raises(
        TypeError, match=r"batch 1 is a tuple and no tensor; .* pass \(images for images, _ in loader\)"
    ):
        measure_power(network(norm="layer"), loader)
    assert len(measure_power(network(norm="layer"), (images for images, _ in loader)).layers) == 3
    with pytest.raises(ValueError, match="no batch was given"):
        measure_power(network(norm="layer"), [])


@pytest.mark.parametrize("convert", [False, True])
def test_every_norm_of_a_timm_network_is_measured(convert: bool) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("resnet10t")
    norms = [path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    if convert:
        model, _ = convert_norm(model, NormActFactory(norm="group", num_groups=4))
    meter = measure_power(model, [random(4, 3, 32, 32)], "training")
    assert sorted(meter.layers) == sorted(norms)
    assert not meter.not_measured
    for statistics in meter.layers.values():
        assert 0 < sum(statistics.layer_power()) < 1 + 1e-5


def test_every_norm_of_a_torchvision_network_is_measured() -> None:
    from datasets.images.torchvision_import import torchvision

    torch.manual_seed(0)
    model = torchvision.models.shufflenet_v2_x0_5(weights=None)
    norms = [path for path, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    meter = measure_power(model, [random(2, 3, 64, 64)])
    assert sorted(meter.layers) == sorted(norms)
