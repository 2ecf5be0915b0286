"""Parameters, multiply-adds and saved activations, against hand-computed and published numbers."""

import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from torch import nn

from models import NETWORKS, build_model
from models import __main__ as table
from models.cost import measure_cost
from models.norm_costs import measure_norm_costs
from normact import NormActFactory
from normact.kernels.operators import why_not_loaded

BATCH_NORM = NormActFactory(norm="batch", proxy=False)

# Published forward multiply-adds of one image at native size, in 1e9.
EFFICIENTNETS = {
    "efficientnet_b0": 0.386,
    "efficientnet_b1": 0.687,
    "efficientnet_b2": 0.994,
    "efficientnet_b3": 1.827,
    "efficientnet_b4": 4.394,
    "efficientnet_b5": 10.27,
    "efficientnet_b0_g16": 0.635,
    "efficientnet_b1_g16": 1.112,
    "efficientnet_b2_g16": 1.522,
    "efficientnet_b3_g16": 2.731,
    "efficientnet_b4_g16": 6.183,
    "efficientnet_b5_g16": 13.50,
}

# name: blocks of the third stage, channels and groups of the first stage's 3x3 convolutions
RESNETS = {
    "resnet50": (6, 64, 1),
    "resnet101": (23, 64, 1),
    "resnext50_32x4d": (6, 128, 32),
    "resnext101_32x4d": (23, 128, 32),
}


def measure_at_native_size(name: str) -> int:
    size = NETWORKS[name].image_size
    with torch.device("meta"):
        model = build_model(name, num_classes=table.choose_num_classes(size), norm_act=BATCH_NORM)
    return measure_cost(model, size).multiply_adds


SLOWER = [f"efficientnet_{size}{form}" for size in ("b1", "b3", "b4") for form in ("", "_g16")]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOWER else []) for name in EFFICIENTNETS]
)
def test_multiply_adds_of_efficientnets_agree_with_the_published_ones_within_one_percent(name: str) -> None:
    assert measure_at_native_size(name) / 1e9 == pytest.approx(EFFICIENTNETS[name], rel=0.01)


@pytest.mark.parametrize("name", RESNETS)
def test_multiply_adds_of_large_resnets_are_exact(name: str) -> None:
    depth, mid, groups = RESNETS[name]
    # Relative to the stage before, a stage has twice the channels on a quarter of the pixels, so every convolution
    # that does not change the size costs the same in all stages; here with 56 x 56 pixels and 256 channels outside.
    pixels = 56 * 56
    inner, outer = pixels * 9 * mid * mid // groups, pixels * 256 * mid
    plain_block = outer + inner + outer
    # Stage 1 begins with 64 channels and a projection from 64. The others begin with half the channels on four times
    # the pixels, hence twice the plain first convolution, and with a projection from half the channels.
    first_block = pixels * 64 * mid + inner + outer + pixels * 64 * 256
    changing_block = 2 * outer + inner + outer + pixels * 256 * 256 // 2
    stem, classifier = 112 * 112 * 49 * 3 * 64, 2048 * 1000
    plain_blocks = 2 + 3 + (depth - 1) + 2
    expected = stem + first_block + 3 * changing_block + plain_blocks * plain_block + classifier
    assert measure_at_native_size(name) == expected


def test_every_network_for_large_images_has_a_row_in_a_table_of_multiply_adds() -> None:
    assert {*EFFICIENTNETS, *RESNETS} == {name for name, network in NETWORKS.items() if network.image_size >= 224}


@pytest.mark.parametrize(
    "name, blocks", [("resnet8", 1), ("resnet20", 3), ("resnet32", 5), ("resnet44", 7), ("resnet56", 9)]
)
def test_multiply_adds_of_small_resnets_are_exact(name: str, blocks: int) -> None:
    # At 32x32 the stem and two convolutions of 16 channels; at 16x16 and 8x8 a block that doubles the channels, with
    # its projection; the classifier.
    first = 1024 * (27 * 16 + 2 * 9 * 256) + 256 * (9 * 512 + 9 * 1024 + 512) + 64 * (9 * 2048 + 9 * 4096 + 2048) + 640
    # A further block in each stage: 2 * 9 * c * c weights, and c * c * H * W is the same in all three.
    further = 3 * 2 * 9 * 256 * 1024
    assert measure_at_native_size(name) == first + (blocks - 1) * further


def test_multiply_adds_of_a_fourth_stage_are_those_of_its_block() -> None:
    block = 16 * (9 * 64 * 128 + 9 * 128 * 128 + 64 * 128)
    assert measure_at_native_size("resnet10") == measure_at_native_size("resnet8") + block + (1280 - 640)


def test_saved_bytes_count_each_storage_once_and_no_parameter() -> None:
    class TwoReaders(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
            self.second = nn.Conv2d(3, 5, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # first and second both keep x: 3 values a pixel, once. relu keeps its output: 4. exp keeps its: 5.
            return torch.relu(self.first(x)).sum() + torch.exp(self.second(x)).sum()

    cost = measure_cost(TwoReaders(), 8)
    assert cost.saved_bytes_per_image == 64 * (3 + 4 + 5) * 4
    assert cost.saved_bytes_fixed == 0
    assert cost.multiply_adds == 64 * (9 * 3 * 4 + 3 * 5)
    assert cost.parameters == 9 * 3 * 4 + 3 * 5


def test_what_does_not_grow_with_the_batch_is_fixed() -> None:
    class ScaledWeight(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(7, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            # the pooled input (3 values an image), exp's output (21 values, whatever the batch) and relu's (7 an image)
            return torch.relu(nn.functional.linear(x.mean((2, 3)), torch.exp(self.weight)))

    cost = measure_cost(ScaledWeight(), 4)
    assert (cost.saved_bytes_fixed, cost.saved_bytes_per_image) == (21 * 4, (3 + 7) * 4)
    assert cost.saved_bytes(5) == 21 * 4 + 5 * 10 * 4


@pytest.mark.parametrize("name", ["resnet8", "efficientnet_small"])
@pytest.mark.parametrize(
    "norm_act",
    [
        BATCH_NORM,
        NormActFactory(norm="group", proxy=True, kernel="reference"),
        NormActFactory("layer+ws", proxy=False, kernel="reference"),
    ],
    ids=["batch", "group and proxy", "layer and weight standardization"],
)
def test_meta_device_gives_the_numbers_of_plain_operations_on_real_tensors(name: str, norm_act: NormActFactory) -> None:
    model = build_model(name, num_classes=10, norm_act=norm_act)
    with torch.device("meta"):
        on_meta = build_model(name, num_classes=10, norm_act=norm_act)
    assert measure_cost(on_meta, 32) == measure_cost(model, 32)


def test_cost_of_a_batch_is_that_of_its_images() -> None:
    model = build_model("resnet8", num_classes=10, norm_act=NormActFactory(norm="group", kernel="reference"))
    assert measure_cost(model, 32, images=3) == measure_cost(model, 32)


def test_norms_that_split_batches_are_measured_with_their_own_batch_size() -> None:
    model = build_model("resnet8", num_classes=10, norm_act=NormActFactory(norm="batch", norm_batch_size=4))
    assert measure_cost(model, 32, images=4).multiply_adds == 12_501_632


def test_half_precision_saves_half_the_bytes_of_the_images() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    full, half = measure_cost(layers, 8), measure_cost(layers.bfloat16(), 8)
    assert full.saved_bytes_per_image == 2 * half.saved_bytes_per_image


def test_measuring_leaves_the_model_and_the_random_numbers_as_they_were() -> None:
    options: Dict[str, Any] = {"drop_rate": 0.2, "drop_path_rate": 0.2}
    model = build_model("efficientnet_small", num_classes=10, norm_act=BATCH_NORM, **options).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    measure_cost(model, 32)
    assert torch.equal(torch.rand(1), expected)
    assert not model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_fused_layers_save_what_batch_norm_saves_and_recomputing_ones_about_half() -> None:
    if why_not_loaded() is not None:
        pytest.skip("no fused kernels here")
    batch, proxy, recomputed = (cost for cost in measure_norm_costs("resnet50").values() if cost is not None)
    # The inputs of convolutions are two of three saved tensors, and the residual sums stay: .99 and .62 were measured.
    assert 0.95 < proxy.saved_bytes_per_image / batch.saved_bytes_per_image < 1.02
    assert 0.5 < recomputed.saved_bytes_per_image / batch.saved_bytes_per_image < 0.65
    real = build_model("resnet8", num_classes=10, norm_act=NormActFactory(recompute=True))
    fake = measure_norm_costs("resnet8", num_classes=10)["GN+PN, recompute"]
    assert fake is not None
    assert measure_cost(real, 32, images=2).saved_bytes_per_image == fake.saved_bytes_per_image


def test_the_table_lists_every_network(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: NETWORKS[name] for name in ("resnet8", "efficientnet_small_g16")}
    monkeypatch.setattr(table, "NETWORKS", few)
    assert table.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[-2:]}
    assert rows["resnet8"][:4] == ["32", "77,850", "78,330", "0.0125"]
    assert rows["efficientnet_small_g16"][:3] == ["32", "300,246", "303,174"]


def test_the_table_ends_silently_when_its_reader_has_seen_enough() -> None:
    command = f"{sys.executable} -u -m models | head -1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=Path(table.__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("parameters") and len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_no_activation_outlives_the_count() -> None:
    model = build_model("resnet8", num_classes=3, norm_act=NormActFactory(norm="group"))
    seen: List["weakref.ref[torch.Tensor]"] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, inputs, output: seen.append(weakref.ref(output)))
    measure_cost(model, 16)
    assert seen and all(reference() is None for reference in seen)
