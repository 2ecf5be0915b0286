"""convert_norm on networks whose code decides by its norms in ways that no list of questions holds, or hides them.

A conversion from batch norm to batch norm without Proxy Normalization must be the same function in both modes.
"""

import copy
import functools
import random
import types
from typing import Any, Dict, Tuple

import pytest
import torch
import torch.nn.functional as F
from randomized_network import randomized
from torch import Tensor, nn

from normact import ConversionReport, NormActFactory, convert_norm
from normact.tracing import FlowTracer

SAME = NormActFactory(norm="batch", proxy=False)
DECIDES = "would not do with another layer what it does"
OUT_OF_REACH = "holds it too, where no other module can take its place"


class Row(nn.Module):
    """Two convolutions with norms; an activation follows what `is_norm` says is a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)])

    def is_norm(self, layer: nn.Module) -> bool:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            if self.is_norm(layer):
                x = F.relu(x)
        return x


class ByName(Row):
    def is_norm(self, layer: nn.Module) -> bool:
        return layer.__class__.__name__ == "BatchNorm2d"


class ByWords(Row):
    def is_norm(self, layer: nn.Module) -> bool:
        return "BatchNorm" in str(type(layer))


class ByTable(Row):
    def is_norm(self, layer: nn.Module) -> bool:
        return {nn.BatchNorm2d: True}.get(type(layer), False)


class ByAHeldClass(Row):
    kind = nn.BatchNorm2d

    def is_norm(self, layer: nn.Module) -> bool:
        return isinstance(layer, self.kind)


class ByState(Row):
    def is_norm(self, layer: nn.Module) -> bool:
        return "running_var" in layer.state_dict()


class ByWhatItHasNot(Row):
    def is_norm(self, layer: nn.Module) -> bool:
        return not list(layer.children()) and not hasattr(layer, "kernel_size")


class ByOtherClass(Row):
    """Of which a layer is none either."""

    def is_norm(self, layer: nn.Module) -> bool:
        return not isinstance(layer, nn.Conv2d)


class AtRandom(Row):
    """As stochastic depth in Python: no two traces are alike."""

    def is_norm(self, layer: nn.Module) -> bool:
        return random.random() < 0.5


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x))) + self.act.weight


class TakesADict(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * vars(self.norm)["momentum"]


class TakesABuffer(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.norm._buffers["running_mean"].mean()


class InASet(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.norms = {self.norm}

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * len([module for module in self.modules() if module in self.norms])


class BoundMethod(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.steps = [self.conv.forward, self.norm.forward, F.relu]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Partial(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.step = functools.partial(self.norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.step(self.conv(x)))


class InAnObject(Pair):
    def __init__(self) -> None:
        super().__init__()
        self.parts = types.SimpleNamespace(norm=self.norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.parts.norm(self.conv(x)))


class FreezesInForward(Pair):
    def forward(self, x: Tensor) -> Tensor:
        self.norm.eval()
        return F.relu(self.norm(self.conv(x)))


# class -> how many of its norms become pairs, and what the report says of the first
CASES: Dict[Any, Tuple[int, str]] = {
    ByName: (0, DECIDES),
    ByWords: (0, DECIDES),
    ByTable: (0, DECIDES),
    ByAHeldClass: (0, DECIDES),
    ByState: (0, DECIDES),
    ByWhatItHasNot: (0, DECIDES),
    ByOtherClass: (2, ""),
    Pair: (1, ""),
    TakesADict: (0, DECIDES),
    TakesABuffer: (0, DECIDES),
    InASet: (0, OUT_OF_REACH),
    BoundMethod: (0, OUT_OF_REACH),
    Partial: (0, OUT_OF_REACH),
    InAnObject: (0, OUT_OF_REACH),
    FreezesInForward: (0, "sets attributes (training)"),
}


def pairs(report: ConversionReport) -> int:
    return sum(norm.activation is not None for norm in report.norms)


@pytest.mark.parametrize("kind", CASES, ids=[kind.__name__ for kind in CASES])
def test_the_function_stays_whatever_the_code_asks_and_wherever_it_holds_its_norms(kind: Any) -> None:
    torch.manual_seed(0)
    model = randomized(kind())
    converted, report = convert_norm(copy.deepcopy(model), SAME)
    count, reason = CASES[kind]
    assert pairs(report) == count and reason in report.norms[0].reason, report
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    for training in (True, False):  # evaluation, with the running statistics that training left
        expected, values = model.train(training)(x), converted.train(training)(x)
        # The same operations in another order, in float64.
        torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9)


def test_only_the_norms_of_the_module_that_asks_stay() -> None:
    _, report = convert_norm(nn.Sequential(Pair(), nn.Conv2d(8, 3, 1), ByName()), SAME)
    assert [norm.activation is None for norm in report.norms] == [False, True, True]


def test_code_that_decides_at_random_is_not_taken_for_code_that_asks() -> None:
    random.seed(0)
    _, report = convert_norm(AtRandom(), SAME)
    assert all(norm.replaced_by == "batch" for norm in report.norms)


def test_the_network_is_as_it_was_where_a_layer_cannot_be_built() -> None:
    model = nn.Sequential(Pair(), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6))
    before = list(model.modules())
    with pytest.raises(ValueError, match="does not divide 6 channels"):
        convert_norm(model, NormActFactory(num_groups=4))
    assert list(model.modules()) == before


def test_to_look_at_an_activation_of_a_library_records_nothing_in_a_trace() -> None:
    layers = pytest.importorskip("timm.layers")
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layers.BatchNormAct2d(8, act_layer=layers.GELU))
    # Input, convolution, norm, output.
    assert [node.op for node in FlowTracer().trace(model).nodes] == ["placeholder", *["call_module"] * 2, "output"]
    _, report = convert_norm(model, SAME)
    assert report.norms[0].activation == "gelu"
