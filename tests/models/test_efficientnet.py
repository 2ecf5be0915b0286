"""EfficientNets: places of norms and proxies, squeeze-excite, groups, stochastic depth."""

from collections import Counter
from typing import Any, List

import pytest
import torch
from torch import nn

from models import ImageClassifier, build_model
from models.drop import Drop
from models.efficientnet import InvertedResidual
from normact import NormAct, NormActFactory
from normact.weight_standardization import WeightStandardizedConv2d

BATCH_NORM = NormActFactory(norm="batch", proxy=False)
PROXY_NORM = NormActFactory(norm="group", proxy=True, num_groups=4)


def build_on_meta(name: str, norm_act: NormActFactory, **options: Any) -> ImageClassifier:
    with torch.device("meta"):
        return build_model(name, num_classes=1000, norm_act=norm_act, **options)


def blocks_of(model: ImageClassifier) -> List[InvertedResidual]:
    return [module for module in model.modules() if isinstance(module, InvertedResidual)]


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b0_g16"])
def test_every_norm_has_silu_and_a_proxy_but_the_projections_which_have_neither_nor_a_beta(name: str) -> None:
    model = build_on_meta(name, PROXY_NORM)
    norms = [module for module in model.modules() if isinstance(module, NormAct)]
    # Stem and top, the depthwise or group convolution of 16 blocks, the expansion of all but the first of them.
    assert Counter(norm.activation for norm in norms) == {"silu": 2 + 16 + 15, None: 16}
    projections = [block.norm3 for block in blocks_of(model)]
    for norm in norms:
        is_projection = any(norm is projection for projection in projections)
        assert (norm.activation is None, norm.bias is None, norm.proxy_beta is None) == (is_projection,) * 3


def test_every_convolution_is_standardized_but_those_of_squeeze_excite_which_have_no_norm() -> None:
    model = build_on_meta("efficientnet_b0", NormActFactory("group+ws", num_groups=4))
    gates = [block.squeeze_excite for block in blocks_of(model)]
    assert not any(isinstance(module, NormAct) for gate in gates for module in gate.modules())
    plain = [
        module
        for module in model.modules()
        if isinstance(module, nn.Conv2d) and not isinstance(module, WeightStandardizedConv2d)
    ]
    assert plain == [layer for gate in gates for layer in (gate.reduce, gate.expand)]


def test_squeeze_excite_reduces_to_a_quarter_of_the_blocks_input_with_bias() -> None:
    for name in ("efficientnet_b0", "efficientnet_b0_g16"):
        model = build_on_meta(name, BATCH_NORM)
        reduced = [block.squeeze_excite.reduce for block in blocks_of(model)]
        inputs = [32, 16, 24, 24, 40, 40, 80, 80, 80, 112, 112, 112, 192, 192, 192, 192]
        assert [layer.out_channels for layer in reduced] == [channels // 4 for channels in inputs]
        assert all(layer.bias is not None for layer in reduced)


def test_group_convolution_variant_has_groups_of_16_channels_and_expansion_4() -> None:
    for block in blocks_of(build_on_meta("efficientnet_b0_g16", BATCH_NORM)):
        convolution = block.conv2
        assert convolution.in_channels // convolution.groups == 16
        if block.has_expansion:
            assert block.conv1.out_channels == 4 * block.conv1.in_channels


def test_drop_path_drops_the_stated_share_of_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = Drop(0.2)
    x = torch.ones(20_000, 2, 1, 1)
    y = layer(x)
    assert torch.equal(y[:, 0], y[:, 1])  # one draw for each image
    kept = y[:, 0].flatten()
    assert set(kept.tolist()) == {0.0, 1.25}
    # Share of n Bernoulli draws: standard deviation sqrt(.2 * .8 / n) = .0028; five of them
    assert abs((kept == 0).float().mean().item() - 0.2) < 0.0142
    assert layer.eval()(x) is x


def test_drop_path_draws_anew_at_each_call_and_follows_the_seed() -> None:
    layer, x = Drop(0.5), torch.ones(64, 1, 1, 1)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first) and not torch.equal(first, second)


def test_drop_path_rate_is_linear_in_the_block_index_and_only_on_identity_skips() -> None:
    model = build_on_meta("efficientnet_b0", BATCH_NORM, drop_path_rate=0.2, drop_rate=0.3)
    blocks = blocks_of(model)
    rates = [block.drop_path.rate if isinstance(block.drop_path, Drop) else 0.0 for block in blocks]
    skips = [2, 4, 6, 7, 9, 10, 12, 13, 14]
    assert rates == pytest.approx([0.2 * index / 16 if index in skips else 0.0 for index in range(16)])
    assert [index for index, block in enumerate(blocks) if block.has_skip] == skips
    assert isinstance(model.dropout, Drop) and (model.dropout.rate, model.dropout.columns) == (0.3, 1280)


def test_a_dropped_branch_leaves_the_identity() -> None:
    model = build_model("efficientnet_small", num_classes=5, norm_act=PROXY_NORM, drop_path_rate=0.9)
    block = blocks_of(model)[-1]
    assert isinstance(block.drop_path, Drop)
    block.drop_path.rate = 1 - 1e-7  # no draw keeps the branch
    x = torch.randn(2, 48, 8, 8)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)
