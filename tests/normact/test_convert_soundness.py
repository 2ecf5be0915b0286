"""convert_norm changes what it says and nothing else: classes, contexts, hooks, parameters, methods, copies."""

import copy
import io
import pickle
from typing import Any, Callable, Dict, List

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d as TimmLayerNorm2d
from torch import Tensor, nn
from torch.nn.utils import parametrize

from datasets.images.torchvision_import import torchvision
from normact import ConversionReport, NormAct, NormActFactory, convert_norm

FACTORY = NormActFactory(num_groups=4)
SAME = NormActFactory(norm="batch", proxy=False)


class BNReLU(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def hooked(norm: nn.Module) -> nn.Module:
    norm.register_forward_hook(lambda module, inputs, output: output * 2)
    return norm


def with_own_forward(norm: nn.Module) -> nn.Module:
    norm.forward = lambda x: x
    return norm


def parametrized(norm: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(norm, "weight", Doubled())


KEPT = [
    (lambda: BNReLU(8), "BNReLU extends BatchNorm2d"),
    (lambda: hooked(nn.BatchNorm2d(8)), "has hooks"),
    (lambda: with_own_forward(nn.BatchNorm2d(8)), "replaced on the instance"),
    (lambda: parametrized(nn.BatchNorm2d(8)), "parametrized"),
    (nn.LazyBatchNorm2d, "before the first forward"),
    (lambda: TimmLayerNorm2d(8), "channels of each position"),
    (lambda: torchvision.models.convnext.LayerNorm2d(8), "channels of each position"),
    (lambda: torch.jit.script(nn.BatchNorm2d(8)), "compiled by torch.jit"),
]


@pytest.mark.parametrize(("norm", "reason"), KEPT, ids=[row[1] for row in KEPT])
def test_a_norm_that_does_more_than_its_kind_is_kept_with_the_reason(
    norm: Callable[[], nn.Module], reason: str
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm(), nn.ReLU())
    kept = model[1]
    x = torch.randn(2, 3, 6, 6)
    before = None if "first forward" in reason else model(x)
    converted, report = convert_norm(model, FACTORY)
    assert converted.get_submodule("1") is kept
    assert report.norms[0].replaced_by is None and reason in report.norms[0].reason
    if before is not None:
        assert torch.equal(converted(x), before)


@pytest.mark.parametrize(("norm", "reason"), KEPT[:4], ids=[row[1] for row in KEPT[:4]])
def test_the_function_that_follows_a_kept_norm_stays(norm: Callable[[], nn.Module], reason: str) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept, self.other = norm(), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.other(torch.tanh(self.kept(x))))

    model = Functional().eval()
    x = torch.randn(2, 8, 6, 6)
    expected = model(x)
    converted, report = convert_norm(model, SAME)
    assert torch.allclose(converted(x), expected, atol=1e-6) and [row.activation for row in report.norms] == [
        None,
        "relu",
    ]


@pytest.mark.parametrize(
    ("norm", "reason"),
    [(nn.BatchNorm2d(8, track_running_stats=False), "track_running_stats"), (nn.BatchNorm2d(8, momentum=None), "None")],
)
def test_batch_norm_whose_statistics_batch_norm_here_does_not_keep_is_kept(norm: nn.Module, reason: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm, nn.ReLU())
    _, report = convert_norm(copy.deepcopy(model), SAME)
    assert report.norms[0].replaced_by is None and reason in report.norms[0].reason
    _, report = convert_norm(model, FACTORY)
    assert report.norms[0].replaced_by == "group" and report.norms[0].proxy


class Stem(nn.Module):
    """conv -> norm -> a functional activation, inside a context."""

    def __init__(self, context: Callable[[], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.context = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), context

    def forward(self, x: Tensor) -> Tensor:
        with self.context():
            return F.relu(self.norm(self.conv(x)))


class Decorated(Stem):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Switched(Stem):
    def forward(self, x: Tensor) -> Tensor:
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        y = F.relu(self.norm(self.conv(x)))
        torch.set_grad_enabled(before)
        return y


STEMS = [
    Stem(torch.no_grad),
    Stem(torch.inference_mode),
    Stem(lambda: torch.set_grad_enabled(False)),
    Stem(lambda: torch.autocast("cpu", dtype=torch.bfloat16)),
    Stem(lambda: torch.autocast("cuda", enabled=False)),
    Stem(torch.autograd.graph.save_on_cpu),
    Decorated(torch.no_grad),
    Switched(torch.no_grad),
]


@pytest.mark.parametrize("stem", STEMS, ids=range(len(STEMS)))
def test_code_in_a_context_is_not_rewritten(stem: nn.Module) -> None:
    model = nn.Sequential(stem, nn.Conv2d(8, 8, 3))
    converted, report = convert_norm(model, FACTORY)
    (row,) = report.norms
    assert not row.proxy and "context" in row.reason and report.rewritten == ()
    assert type(stem).forward is type(converted.get_submodule("0")).forward


def test_a_frozen_stem_stays_frozen() -> None:
    model, _ = convert_norm(nn.Sequential(Stem(torch.no_grad), nn.Conv2d(8, 8, 3)), FACTORY)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert model.get_submodule("0.conv").weight.grad is None
    assert model.get_submodule("1").weight.grad is not None


class Net(nn.Module):
    """A functional activation: its pair needs another forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.register_buffer("calls", torch.zeros(()))
        self.label = "a net"

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.1)

    def described(self) -> str:
        return f"{self.label} of {self.conv.out_channels} channels"


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickled, saved, lambda model: pickled(pickled(model))])
def test_a_rewritten_network_keeps_class_methods_and_attributes_and_can_be_copied(copied: Any) -> None:
    model = Net()
    converted, report = convert_norm(model, FACTORY)
    assert converted is model and report.rewritten == ("",) and report.norms[0].activation == "leaky_relu(0.1)"
    assert isinstance(converted, Net) and type(converted).__name__ == "Net"
    assert converted.described() == "a net of 8 channels"
    again = copied(converted)
    assert isinstance(again, Net) and again.described() == "a net of 8 channels"
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(again(x), converted(x)) and torch.equal(converted(x), converted.norm(converted.conv(x)))
    assert list(again.state_dict()) == list(converted.state_dict())


def test_timm_networks_keep_their_methods() -> None:
    model, report = convert_norm(timm.create_model("dla34", num_classes=3).eval(), FACTORY)
    assert report.rewritten and model.get_classifier().out_channels == 3
    model.reset_classifier(5)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)


class SetsAttributes(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.features = self.norm(self.conv(x))
        return F.relu(self.features)


class Counts(Net):
    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return F.relu(self.norm(self.conv(x)))


class MakesTensors(Net):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x))) + torch.rand(1)


class SwitchedOff(Net):
    """An activation module that is used in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return self.act(y) if self.training else y


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (SetsAttributes(), "sets attributes (features)"),
        (MakesTensors(), "makes tensors"),
        (SwitchedOff(), "differs between training and evaluation"),
    ],
)
def test_code_that_a_graph_does_not_hold_is_left_as_it_is(model: nn.Module, reason: str) -> None:
    names = set(vars(model))
    same = convert_norm(copy.deepcopy(model).eval(), SAME)[0]
    x = torch.randn(2, 3, 6, 6)
    with torch.random.fork_rng():
        expected = copy.deepcopy(model).eval()(x)
    with torch.random.fork_rng():
        torch.testing.assert_close(same(x), expected)
    _, report = convert_norm(model, FACTORY)
    assert not report.norms[0].proxy and reason in report.norms[0].reason
    assert set(vars(model)) == names  # tracing left nothing behind


def test_what_a_forward_does_to_a_buffer_is_not_done_while_converting_and_still_is_afterwards() -> None:
    converted, report = convert_norm(Counts(), FACTORY)
    assert converted.calls == 0 and report.norms[0].proxy
    converted(torch.randn(2, 3, 6, 6))
    assert converted.calls == 1


def test_hooks_do_not_run_while_converting_and_run_afterwards() -> None:
    seen: List[type] = []
    model = nn.Sequential(Net(), nn.ReLU())
    for module in (model, model[0]):
        module.register_forward_hook(lambda module, inputs, output: seen.append(type(output)))
        module.register_forward_pre_hook(lambda module, inputs: seen.append(type(inputs[0])))
    converted, report = convert_norm(model, FACTORY)
    assert seen == [] and report.rewritten == ("0",) and report.norms[0].proxy
    converted(torch.randn(2, 3, 6, 6))
    assert seen == [Tensor] * 4


def test_an_activation_with_hooks_and_one_behind_hooks_are_no_pairs() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), nn.ReLU())
    behind = copy.deepcopy(model)
    behind[0].register_forward_hook(lambda module, inputs, output: output * 2)
    model[1].register_forward_hook(lambda module, inputs, output: None)
    for network, reason in ((model, "ReLU, which has hooks"), (behind, "through_hooks")):
        _, report = convert_norm(network, FACTORY)
        assert not report.norms[0].proxy and reason in report.norms[0].reason


def test_gamma_and_beta_are_the_same_parameters_and_the_report_names_the_new_ones() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    before = {id(parameter) for parameter in model.parameters()}
    converted, report = convert_norm(model, FACTORY)
    assert {id(p) for p in converted.parameters()} > before
    assert report.new_parameters == ("1.proxy_beta", "1.proxy_gamma")
    assert "2 new parameters (1.proxy_beta, ...): an optimizer made before" in str(report)


@pytest.mark.parametrize("affine", [True, False])
def test_a_frozen_network_gets_no_trainable_parameters(affine: bool) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=affine), nn.ReLU()).requires_grad_(False)
    converted, report = convert_norm(model, FACTORY)
    assert report.norms[0].proxy and not any(parameter.requires_grad for parameter in converted.parameters())


def test_new_modules_are_in_the_mode_of_those_that_they_replace() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    converted, _ = convert_norm(model, FACTORY)
    assert [type(m).__name__ for m in converted] == ["Conv2d", "NormAct", "Identity"]  # type: ignore[attr-defined]
    assert not any(module.training for module in converted.modules())


def normalized_weights(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)]
    return nn.Sequential(wrap(convolutions[0]), nn.BatchNorm2d(8), nn.ReLU(), wrap(convolutions[1]))


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        nn.utils.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.orthogonal,
        parametrized,
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_convolutions_whose_weights_are_computed_stay_so(
    wrap: Callable[[nn.Module], nn.Module], calibrated: bool
) -> None:
    model = normalized_weights(wrap).eval()
    x = torch.randn(4, 3, 8, 8)
    names = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("1.")}
    expected = model(x)
    same, _ = convert_norm(normalized_weights(wrap).eval(), SAME)
    torch.testing.assert_close(same(x), expected)
    converted, report = convert_norm(model, FACTORY, calibrate=x if calibrated else None)
    (row,) = report.norms
    assert row.activation == "relu"
    after = converted.state_dict()
    assert all(torch.equal(after[name], value) for name, value in names.items())
    assert [layer.note for layer in report.calibrated if "used by" not in layer.note] == []
    converted.train()(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in converted.parameters())


def test_what_torch_jit_took_before_is_traced_afterwards_and_script_says_why_not() -> None:
    model = normalized_weights(lambda convolution: convolution).eval()
    torch.jit.script(model)
    converted, _ = convert_norm(model, FACTORY)
    with pytest.raises(NotImplementedError, match=r"does not take a NormAct layer.*torch.jit.trace"):
        torch.jit.script(converted)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(torch.jit.trace(converted, x)(x), converted(x))
    kept, _ = convert_norm(nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.ReLU()), FACTORY)
    torch.testing.assert_close(torch.jit.script(kept)(x), kept(x))


def test_a_script_module_is_told() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    _, report = convert_norm(scripted, FACTORY)
    (row,) = report.norms
    assert row.path == "1" and "compiled by torch.jit" in row.reason


@pytest.mark.parametrize("name", ["nf_resnet26", "dm_nfnet_f0"])
def test_a_block_without_a_norm_is_no_norm(name: str) -> None:
    with torch.device("meta"):
        _, report = convert_norm(timm.create_model(name), FACTORY)
    assert report.norms == ()


def test_the_report_names_the_groups_of_each_layer() -> None:
    model = nn.Sequential(nn.BatchNorm2d(12), nn.ReLU(), nn.BatchNorm2d(58), nn.ReLU(), nn.BatchNorm2d(6), nn.ReLU())
    _, report = convert_norm(model, NormActFactory())
    assert [row.num_groups for row in report.norms] == [6, 2, 6]
    assert str(report).splitlines()[0].split() == ["norm", "was", "is", "groups", "activation", "PN", "note"]


class InPlace(Net):
    """Every kind of operation in place: a module's, a function's, a method's, an operator's."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(x)), True)
        y += 1
        z = y.mul_(2)
        torch.relu_(y)
        return F.leaky_relu(y, 0.1, inplace=True) + z


def _blocks() -> Dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"in_place": InPlace(), "resnet": torchvision.models.resnet18(num_classes=3)}


@pytest.mark.parametrize("name", ["in_place", "resnet"])
def test_out_of_place_leaves_no_operation_in_place_and_the_function_alone(name: str) -> None:
    model = _blocks()[name].eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    same, report = convert_norm(copy.deepcopy(model), SAME, out_of_place=True)
    for network in (same, pickled(same)):
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
    assert report.in_place == ()

    converted, report = convert_norm(model, FACTORY, out_of_place=True)
    for module in converted.modules():
        assert not getattr(module, "inplace", False)
        if isinstance(module, NormAct):
            # Raises where the output of a hooked module is changed in place.
            module.register_full_backward_hook(lambda module, grad_input, grad_output: None)
    converted(x).sum().backward()


def test_in_place_operations_that_stay_are_told() -> None:
    class Context(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.norm(self.conv(x)).add_(1)

    report: ConversionReport = convert_norm(Context(), FACTORY, out_of_place=True)[1]
    assert report.in_place == (("", "its code enters a context (gradients off or on, no_grad)"),)
    assert "in-place operations of (the network) stay: its code enters a context" in str(report)
