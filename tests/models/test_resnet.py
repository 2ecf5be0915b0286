"""ResNet v2: the order of norms and convolutions, and which convolutions the factory makes."""

from typing import Any, Dict, List, Set

import pytest
import torch
from torch import nn

from models import build_model
from models.resnet import ResNet, ResNetShape
from normact import NormAct, NormActFactory
from normact.weight_standardization import WeightStandardizedConv2d

PROXY_NORM = NormActFactory(norm="group", proxy=True, num_groups=4)


def test_resnet_v2_puts_norm_and_activation_before_each_convolution_but_the_stem_and_after_the_last_block() -> None:
    model = build_model("resnet8", num_classes=5, norm_act=PROXY_NORM)
    called: List[nn.Module] = []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, NormAct, nn.Linear)):
            module.register_forward_hook(lambda module, inputs, output: called.append(module))
    model(torch.randn(1, 3, 32, 32))
    names = {module: name for name, module in model.named_modules()}
    block = ["norm1", "projection", "conv1", "norm2", "conv2"]
    expected = ["stem.conv"]
    for stage in range(3):
        expected += [f"stages.{stage}.0.{name}" for name in block if name != "projection" or stage > 0]
    assert [names[module] for module in called] == [*expected, "norm", "classifier"]


def test_resnet_projection_reads_the_first_norm_and_activation_and_the_identity_reads_the_input() -> None:
    shape = ResNetShape((1, 2), width=8, bottleneck=True, conv_groups=4, group_width=4)
    model = ResNet(shape, num_classes=5, norm_act=PROXY_NORM, in_channels=3).double()
    blocks: Any = model.stages[1]
    changing, plain = blocks
    assert changing.projection is not None and plain.projection is None
    for block in (changing, plain):
        x = torch.randn(2, block.norm1.weight.numel(), 8, 8, dtype=torch.float64)
        nn.init.zeros_(block.conv3.weight)
        expected = x if block.projection is None else block.projection(block.norm1(x))
        torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name, last", [("resnet8", "conv2"), ("resnet50", "conv3"), ("resnext50_32x4d", "conv3")])
def test_weights_are_standardized_but_in_stem_projection_and_last_convolution_of_each_block(
    name: str, last: str
) -> None:
    with torch.device("meta"):
        model = build_model(name, num_classes=5, norm_act=NormActFactory("group+ws"))
    kinds: Dict[str, Set[str]] = {"standardized": set(), "plain": set()}
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            place = "stem" if path == "stem.conv" else path.split(".")[-1]
            kinds["standardized" if isinstance(module, WeightStandardizedConv2d) else "plain"].add(place)
    assert kinds["plain"] == {"stem", "projection", last}
    assert kinds["standardized"] == ({"conv1"} if last == "conv2" else {"conv1", "conv2"})


@pytest.mark.parametrize("name", ["resnet8", "resnet50"])
def test_every_norm_of_a_resnet_has_relu_and_a_proxy(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, num_classes=5, norm_act=PROXY_NORM)
    norms = [module for module in model.modules() if isinstance(module, NormAct)]
    assert len(norms) == {"resnet8": 3 * 2 + 1, "resnet50": 16 * 3 + 1}[name]
    assert all(norm.activation == "relu" and norm.proxy_beta is not None for norm in norms)
