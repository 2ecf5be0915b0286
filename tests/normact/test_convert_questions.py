"""convert_norm on networks whose code asks its norms and activations, or holds them where torch does not see them.

A conversion from batch norm to batch norm without Proxy Normalization must be the same function in both modes, whatever
becomes a layer and whatever is kept.
"""

import copy
import pickle
from typing import Any, Dict, Optional, Tuple

import pytest
import torch
import torch.nn.functional as F
from asserting_networks import Asserts, AssertsMembership, AssertsOneOfTwo
from randomized_network import randomized
from torch import Tensor, nn

from normact import ConversionReport, NormActFactory, convert_norm
from normact.recognize import _KNOWN

SAME = NormActFactory(norm="batch", proxy=False)
PROXY = NormActFactory(num_groups=4)


class Net(nn.Module):
    """conv -> norm -> activation, as the subclass's forward has it."""

    def __init__(self, norm: Optional[nn.Module] = None, act: Optional[nn.Module] = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), norm or nn.BatchNorm2d(8)
        self.act = act or nn.ReLU()

    def forward(self, x: Tensor) -> Any:
        return F.relu(self.norm(self.conv(x)))


class ReadsWhatALayerHas(Net):
    def forward(self, x: Tensor) -> Any:
        norm = self.norm
        y = F.relu(norm(self.conv(x))) * norm.num_features + norm.eps + norm.weight.mean()
        return y + norm.bias.sum() if norm.affine else y


class ReadsMomentum(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * self.norm.momentum


class FunctionalNorm(Net):
    def forward(self, x: Tensor) -> Any:
        n = self.norm
        y = self.conv(x)
        return F.relu(F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, self.training, 0.1, n.eps))


class Untraceable(Net):
    """Its code is not run by a trace, and asks in a method of its own."""

    def forward(self, x: Tensor) -> Any:
        return self.scaled(super().forward(x)) if x.abs().max() < 1e9 else x

    def scaled(self, y: Tensor) -> Tensor:
        norm = self.norm
        return y * norm.running_var.mean()


class NotTraced(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) if x.abs().max() < 1e9 else x


class NotTaken(Net):
    """The question stands in a branch that no trace takes."""

    extra = False

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y * self.norm.running_var.mean() if self.extra else y


class AsksForItsAffine(Net):
    def __init__(self) -> None:
        super().__init__(nn.BatchNorm2d(8, affine=False))

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + (1 if self.norm.weight is None else 0)


class AsksIsinstance(Net):
    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.conv(x))
        return F.relu(y) if isinstance(self.norm, (nn.GroupNorm, nn.BatchNorm2d)) else torch.tanh(y)


class AsksType(Net):
    def forward(self, x: Tensor) -> Any:
        y = self.norm(self.conv(x))
        return F.relu(y) if type(self.norm) is nn.BatchNorm2d else torch.tanh(y)


class AsksEveryModule(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + sum(m.weight.sum() for m in self.modules() if isinstance(m, nn.BatchNorm2d))


class FreezesInTrain(Net):
    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


class ReadsTheSlope(Net):
    def __init__(self) -> None:
        super().__init__(act=nn.LeakyReLU(0.2))

    def forward(self, x: Tensor) -> Any:
        return self.act(self.norm(self.conv(x))) * self.act.negative_slope


class AsksTheActivation(Net):
    def forward(self, x: Tensor) -> Any:
        y = self.act(self.norm(self.conv(x)))
        return y if isinstance(self.act, nn.ReLU) else y + 1


class ReadsItsMode(Net):
    def forward(self, x: Tensor) -> Any:
        return F.dropout(super().forward(x), 0.3, training=self.training) if self.norm.training is not None else x


class ByKeyword(Net):
    def forward(self, x: Tensor) -> Any:
        return F.relu(input=self.norm(input=self.conv(input=x)), inplace=True)


class PlainlyHeld(Net):
    def __init__(self) -> None:
        super().__init__()
        self.order: Any = [self.conv, (self.norm, {"act": self.act})]

    def forward(self, x: Tensor) -> Any:
        conv, (norm, others) = self.order
        return others["act"](norm(conv(x)))


class FunctionalDropout(Net):
    def forward(self, x: Tensor) -> Any:
        return F.dropout(super().forward(x), p=0.3, training=self.training)


def drop_connect(x: Tensor, p: float, training: bool) -> Tensor:
    """As libraries write it: no trace goes through len() in training, nor is there anything in evaluation."""
    if not training:
        return x
    shape = [x.shape[0]] + [1] * (len(x.shape) - 1)
    return x * torch.bernoulli(torch.full(shape, 1 - p, dtype=x.dtype))


class DropConnect(Net):
    def forward(self, x: Tensor) -> Any:
        return drop_connect(super().forward(x), 0.3, training=self.training) + x.mean()


class Scripted(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)))

    def forward(self, x: Tensor) -> Any:
        return self.head(super().forward(x))


PAIR, KEPT = "a pair", "kept"
# class, what becomes of its norm, the reason
CASES: Dict[Any, Tuple[str, str]] = {
    ReadsWhatALayerHas: (PAIR, ""),
    ReadsMomentum: (KEPT, "uses its momentum, which another layer has not"),
    FunctionalNorm: (KEPT, "uses its running_mean"),
    Untraceable: (KEPT, "uses its running_var"),
    NotTaken: (KEPT, "uses its running_var"),
    AsksForItsAffine: (KEPT, "uses its weight"),
    AsksIsinstance: (KEPT, "asks whether it is a BatchNorm2d"),
    AsksType: (KEPT, "asks whether it is a BatchNorm2d"),
    AsksEveryModule: (KEPT, "asks whether it is a BatchNorm2d"),
    FreezesInTrain: (KEPT, "asks whether it is a BatchNorm2d"),
    ReadsTheSlope: (PAIR, ""),
    AsksTheActivation: (PAIR, ""),
    ReadsItsMode: (PAIR, ""),
    ByKeyword: (PAIR, ""),
    PlainlyHeld: (PAIR, ""),
    FunctionalDropout: (PAIR, ""),
    DropConnect: (PAIR, ""),
    Scripted: (PAIR, ""),
    Asserts: (PAIR, ""),
}


def values(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(1)
    return model(x)


@pytest.mark.parametrize("kind", CASES, ids=[kind.__name__ for kind in CASES])
def test_the_function_stays_and_the_report_says_what_is_left(kind: Any) -> None:
    torch.manual_seed(0)
    model = randomized(kind())
    converted, report = convert_norm(copy.deepcopy(model).eval(), SAME)
    row = report.norms[0]
    outcome, reason = CASES[kind]
    assert (KEPT if row.replaced_by is None else PAIR) == outcome and reason in row.reason
    assert outcome == KEPT or row.activation is not None, row
    copies = [converted] if kind is Scripted else [converted, pickle.loads(pickle.dumps(converted))]
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    for training in (True, False):
        expected = values(copy.deepcopy(model).train(training), x)
        for network in copies:
            # The same operations in another order, in float64.
            torch.testing.assert_close(
                values(copy.deepcopy(network).train(training), x), expected, rtol=1e-9, atol=1e-9
            )


def test_train_may_ask_where_no_batch_norm_comes() -> None:
    converted, report = convert_norm(FreezesInTrain(), PROXY)
    assert report.norms[0].proxy and converted.train().norm.training


def test_a_layer_answers_as_torchs_norms_do_and_nothing_that_it_is_not() -> None:
    layer = NormActFactory(num_groups=4, eps=1e-3)(8, "relu")
    answers = (layer.num_features, layer.num_channels, layer.num_groups, layer.eps, layer.affine)
    assert answers == (8, 8, 4, 1e-3, True)
    for name in ("running_var", "momentum", "track_running_stats"):
        assert not hasattr(layer, name) and not hasattr(NormActFactory(norm="batch")(8, "relu"), name)
    assert not hasattr(NormActFactory(norm="none")(8, "relu"), "eps")


class OwnName(nn.GroupNorm):
    """A norm under a library's name, whose forward reads an attribute of its own."""

    def __init__(self) -> None:
        super().__init__(4, 8)
        self.fast_norm = False

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if not self.fast_norm else input


def test_what_a_norm_asks_itself_is_no_question_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normact.recognize._KNOWN", _KNOWN | {f"{__name__}.OwnName"})
    assert report_of(NotTraced(OwnName())).norms[0].replaced_by == "group"


def marked(norm: nn.Module) -> nn.Module:
    norm.lr_scale = 0.1  # type: ignore[assignment]
    return norm


def with_state_hook(norm: nn.Module) -> nn.Module:
    norm._register_state_dict_hook(lambda module, state, prefix, metadata: state)
    return norm


def with_buffer(norm: nn.Module) -> nn.Module:
    norm.register_buffer("mask", torch.ones(8))
    return norm


def report_of(model: nn.Module) -> ConversionReport:
    return convert_norm(model, PROXY)[1]


def test_marks_go_on_and_what_a_layer_would_not_do_keeps_the_norm() -> None:
    converted, _ = convert_norm(Net(marked(nn.BatchNorm2d(8))), PROXY)
    assert converted.norm.lr_scale == 0.1
    assert "hooks of its state" in report_of(Net(with_state_hook(nn.BatchNorm2d(8)))).norms[0].reason
    assert "tensors of unknown use: mask" in report_of(Net(with_buffer(nn.BatchNorm2d(8)))).norms[0].reason


def test_a_norm_that_torch_does_not_see_is_in_the_report() -> None:
    model = Net()
    model.hidden = {"a": [nn.BatchNorm2d(8)]}  # type: ignore[assignment]
    rows = {row.path: row for row in report_of(model).norms}
    assert rows["norm"].proxy and "plain attribute" in rows["hidden['a'][0]"].reason


def test_assertions_still_stop_wrong_inputs() -> None:
    converted, report = convert_norm(Asserts(), PROXY)
    assert report.norms[0].proxy
    for shape in ((2, 3, 2, 2), (3, 8, 8)):
        with pytest.raises(AssertionError, match="in forward, does not hold"):
            converted(torch.ones(shape))


@pytest.mark.parametrize("kind", [AssertsOneOfTwo, AssertsMembership])
def test_what_need_not_hold_is_not_asserted(kind: Any) -> None:
    converted, report = convert_norm(kind(), PROXY)
    assert not report.norms[0].proxy and "control flow" in report.trace_failures[0][1]
    assert converted(torch.ones(2, 3, 4, 4)).shape == (2, 8, 4, 4)


def test_an_instance_norm_that_evaluated_by_running_statistics_is_told() -> None:
    kept_statistics, own = (nn.InstanceNorm2d(8, track_running_stats=track) for track in (True, False))
    assert "evaluated by running statistics" in report_of(Net(kept_statistics)).norms[0].reason
    assert report_of(Net(own)).norms[0].reason == ""


def test_a_second_conversion_finds_nothing_to_do() -> None:
    converted, _ = convert_norm(Net(), PROXY)
    assert report_of(converted).norms == ()


def test_a_graph_module_is_rewritten_by_its_graph() -> None:
    converted, report = convert_norm(torch.fx.symbolic_trace(Net()), PROXY)
    x = torch.randn(2, 3, 6, 6)
    assert report.rewritten == ("",) and report.norms[0].proxy and "relu" not in converted.code
    torch.testing.assert_close(pickle.loads(pickle.dumps(converted))(x), converted(x))


def test_in_place_operations_behind_a_function_that_no_trace_goes_through_are_told() -> None:
    _, report = convert_norm(DropConnect(), PROXY, out_of_place=True)
    assert report.in_place == (("", "it calls drop_connect, whose code could not be traced"),)
