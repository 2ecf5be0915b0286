"""convert_norm where a network's own code decides by what stands in a norm's place: the function must stay.

A conversion from batch norm to batch norm without Proxy Normalization is the same function, in both modes.
"""

from __future__ import annotations

import copy
import functools
import re
from typing import Any, Callable, List

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normact import NormActFactory, convert_norm

SAME = NormActFactory(norm="batch", proxy=False)


class Walked(nn.Module):
    """Applies a ReLU behind each layer of which `asks` says so."""

    def __init__(self, asks: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self.asks = asks
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            if self.asks(layer):
                x = F.relu(x)
        return x


def is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)


def has_statistics(layer: nn.Module) -> bool:
    try:
        return layer.running_mean is not None
    except AttributeError:
        return False


QUESTIONS: List[Callable[[nn.Module], bool]] = [
    is_norm,
    has_statistics,
    lambda layer: not isinstance(layer, nn.Conv2d) and isinstance(layer, nn.BatchNorm2d),
    lambda layer: layer.__class__.__name__ == "BatchNorm2d",
    lambda layer: type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d),
    lambda layer: type(layer) is nn.BatchNorm2d,
    lambda layer: issubclass(type(layer), nn.BatchNorm2d),
    lambda layer: {nn.BatchNorm2d: True}.get(type(layer), False),
    lambda layer: "BatchNorm" in repr(layer),
    lambda layer: re.match("BatchNorm", layer._get_name()) is not None,
    lambda layer: "running_var" in dir(layer),
    lambda layer: "momentum" in vars(layer),
    lambda layer: "num_batches_tracked" in dict(layer.named_buffers()),
    lambda layer: hasattr(layer, "track_running_stats"),
    lambda layer: getattr(layer, "momentum", None) == 0.1,
    lambda layer: len(list(layer.parameters())) == 2 and next(layer.parameters()).dim() == 1,
    lambda layer: len(list(layer.modules())) == 1 and not hasattr(layer, "kernel_size"),
]


class CountsModules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.conv(x)))
        return y * sum(type(module) is nn.BatchNorm2d for module in self.modules())


class CountsParameters(CountsModules):
    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x))) * len(list(self.parameters()))


class HoldsAMethod(CountsModules):
    def __init__(self) -> None:
        super().__init__()
        self.normalize = self.norm.forward

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.normalize(self.conv(x)))


class HoldsAPartial(CountsModules):
    def __init__(self) -> None:
        super().__init__()
        self.normalize = functools.partial(nn.Module.__call__, self.norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.normalize(self.conv(x)))


class HoldsASet(CountsModules):
    def __init__(self) -> None:
        super().__init__()
        self.decayed = {self.norm}

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.conv(x)))
        return y * 2 if self.norm in self.decayed else y


def randomized(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return model


def assert_the_function_stays(model: nn.Module) -> None:
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    original = randomized(model)
    converted, _ = convert_norm(copy.deepcopy(original), SAME)
    for training in (False, True):
        expected, got = original.train(training)(x), converted.train(training)(x)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)  # batch norm's own order of operations


@pytest.mark.parametrize("asks", QUESTIONS)
def test_a_decision_by_what_a_layer_is_stays_as_it_was(asks: Any) -> None:
    assert_the_function_stays(Walked(asks))


@pytest.mark.parametrize("kind", [CountsModules, CountsParameters, HoldsAMethod, HoldsAPartial, HoldsASet])
def test_a_network_that_counts_or_holds_its_norms_keeps_its_function(kind: Any) -> None:
    assert_the_function_stays(kind())


def test_code_that_asks_nothing_gives_up_its_norms() -> None:
    _, report = convert_norm(Walked(lambda layer: isinstance(layer, nn.Module)), NormActFactory(num_groups=4))
    assert [norm.replaced_by for norm in report.norms] == ["group", "group"]
