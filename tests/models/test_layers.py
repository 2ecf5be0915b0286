"""Networks layer by layer: numbers by hand, and sums that are those of the whole network."""

from __future__ import annotations

from typing import List

import pytest
import torch
from torch import Tensor, nn

from models import build_model
from models.__main__ import main
from models.cost import measure_cost
from models.layers import measure_layers
from normact import NormActFactory


class Block(nn.Module):
    """A convolution, a norm, and a product with its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = NormActFactory(norm="group", num_groups=4, kernel="reference")(8, "relu")
        self.classifier = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return self.classifier((y * y.sigmoid()).mean((2, 3)))


def test_rows_are_those_computed_by_hand() -> None:
    rows = {row.name: row for row in measure_layers(Block(), 4)}
    assert list(rows) == ["conv", "norm", "classifier", "(whole)"]
    assert [rows[name].output for name in rows] == [(8, 4, 4), (8, 4, 4), (5,), (5,)]
    assert [rows[name].parameters for name in rows] == [3 * 9 * 8, 4 * 8, 8 * 5 + 5, 0]
    assert (rows["norm"].kind, rows["norm"].norm, rows["(whole)"].kind) == ("NormAct", "GroupNorm 4 + PN", "(Block)")
    assert rows["conv"].saved_bytes_per_image == 4 * 3 * 16  # its input
    assert rows["classifier"].saved_bytes_per_image == 4 * 8
    # both factors of the product, of which sigmoid keeps its output too, once
    assert rows["(whole)"].saved_bytes_per_image == 2 * 4 * 8 * 16


@pytest.mark.parametrize("name", ["resnet8", "efficientnet_small"])
@pytest.mark.parametrize("norm", ["batch", "group", "frn", "group recomputed"])
def test_sums_over_layers_are_those_of_the_network(name: str, norm: str) -> None:
    kind, recompute = norm.split()[0], norm.endswith("recomputed")
    groups = 4 if kind == "group" else None
    factory = NormActFactory(norm=kind, proxy=kind != "frn", num_groups=groups, recompute=recompute)
    model = build_model(name, num_classes=10, norm_act=factory)
    rows, cost = measure_layers(model, 32), measure_cost(model, 32, images=2)
    assert sum(row.parameters for row in rows) == cost.parameters
    # each row is rounded up by itself, and what is kept whatever the number of images is divided among two
    assert sum(row.saved_bytes_per_image for row in rows) == pytest.approx(cost.saved_bytes_per_image, rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["resnet8"], ["stages.0.0.norm1", "GroupNorm 8 + PN", "16x32x32", "78,330"]),
        (["resnet8", "--norm", "batch", "--no-proxy", "--image-size", "16"], ["BatchNorm", "16x16x16", "77,850"]),
        (["efficientnet_small", "--recompute"], ["GroupNorm 4 + PN", "(SqueezeExcite)"]),
    ],
)
def test_the_command_prints_one_network(
    arguments: List[str], parts: List[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert all(part in output for part in parts), output


def test_an_unknown_network_is_answered_with_the_nearest_and_all_in_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["resnet51"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: unknown network 'resnet51'; the nearest names are resnet56, resnet50, resnet10; all:"
    assert "efficientnet_b5_g16" in " ".join(lines[1:]).split() and max(map(len, lines)) <= 120


def test_the_random_state_stays(capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.get_rng_state()
    assert main(["efficientnet_small"]) == 0
    assert torch.equal(torch.get_rng_state(), state)
