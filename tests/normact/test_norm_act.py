"""The layer and its factory: the formula, the choices, and what tracing compilers make of it."""

import copy
import logging
import pickle
from types import SimpleNamespace
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analysis.normalized import find_normalizations
from normact import (
    NormAct,
    NormActFactory,
    WeightStandardizedConv2d,
    affine_parameter_names,
    convert_norm,
    fold_for_inference,
    norm_act,
    proxy_statistics,
)
from normact.channels import affine
from normact.factory import NORM_KINDS, NormKind, norm_names
from normact.norm import Norm

WITH_PROXY = ["batch", "layer", "instance", "group"]
# The layer runs on torch 2.0 too, which PopTorch needs; what that torch itself cannot do is not asked of it.
NEEDS_NEW_TORCH = pytest.mark.skipif(
    torch.__version__.startswith("2.0."), reason="torch 2.0: no float16 norms on CPUs, no torch.compile on Python 3.11"
)


def randomize(layer: NormAct, seed: int = 0) -> NormAct:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return layer


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def numpy_relu_proxy(weight: Any, bias: Any, proxy_beta: Any, proxy_gamma: Any) -> Any:
    """Return mean and variance of ReLU by a sum over 200,001 nodes: nothing of the layer takes part."""
    z = np.linspace(-9, 9, 200001)[:, None]
    density = np.exp(-0.5 * z**2)
    density /= density.sum()
    phi = np.maximum(weight * (proxy_beta + (1 + proxy_gamma) * z) + bias, 0)
    mean = (density * phi).sum(0)
    return mean, (density * (phi - mean) ** 2).sum(0)


FORMULA_SHAPES = [(4, 8), (4, 8, 5), (4, 8, 4, 3), (4, 8, 2, 3, 2)]


@pytest.mark.parametrize(
    ("norm", "shape"),
    # Instance norm refuses (N, C): each group would be a single value.
    [(norm, shape) for norm in WITH_PROXY for shape in FORMULA_SHAPES if norm != "instance" or len(shape) > 2],
)
def test_the_layer_is_its_formula(norm: str, shape: Any) -> None:
    fields: Dict[str, Any] = {"num_groups": 4} if norm == "group" else {}
    layer = randomize(NormActFactory(norm=norm, **fields)(8, "relu")).double()
    x = images(*shape).double()
    weight, bias, proxy_beta, proxy_gamma = (
        parameter.detach().numpy() for parameter in (layer.weight, layer.bias, layer.proxy_beta, layer.proxy_gamma)
    )
    columns = (1, -1) + (1,) * (len(shape) - 2)
    z = np.maximum(weight.reshape(columns) * layer.norm(x).numpy() + bias.reshape(columns), 0)
    mean, variance = numpy_relu_proxy(weight, bias, proxy_beta, proxy_gamma)
    expected = (z - mean.reshape(columns)) / np.sqrt(variance.reshape(columns) + 0.03)
    # The reference sum steps over ReLU's kink.
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-6)


def test_the_layer_by_hand() -> None:
    # One channel pair, values (1, 3): y = (-1, 1). ReLU: (0, 1). Proxy at init: mean .398942, 1/std 1.64212.
    layer = NormActFactory(norm="layer", eps=0.0)(2, "relu")
    expected = [[-0.398942 * 1.64212, (1 - 0.398942) * 1.64212]]
    np.testing.assert_allclose(layer(torch.tensor([[1.0, 3.0]])).detach().numpy(), expected, atol=1e-5)


def test_gradients_reach_all_parameters_through_the_proxy_statistics() -> None:
    layer = randomize(NormActFactory(norm="group", num_groups=2)(4, "silu")).double()
    x = images(3, 4, 2).double().requires_grad_()
    names = [name for name, _ in layer.named_parameters()]
    assert names == ["weight", "bias", "proxy_beta", "proxy_gamma"]

    def forward(value: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters)), (value,))

    assert torch.autograd.gradcheck(forward, (x, *layer.parameters()))


@pytest.mark.parametrize("norm", WITH_PROXY)
@pytest.mark.parametrize("proxy", [True, False])
def test_without_an_activation_there_is_no_proxy_and_by_default_beta_only_without_pn(norm: str, proxy: bool) -> None:
    factory = NormActFactory(norm=norm, proxy=proxy)
    layer = factory(8, None)
    assert layer.activation is None and layer.proxy_beta is None and layer.proxy_gamma is None
    assert (layer.bias is None) == proxy
    assert factory(8, None, bias=True).bias is not None
    assert factory(8, None, bias=False).bias is None
    assert factory(8, "relu").bias is not None
    x = images(4, 8, 3, 3)
    torch.testing.assert_close(layer(x), layer.norm(x))


def test_learn_proxy_false_fixes_the_proxy_at_zero() -> None:
    fixed, learned = NormActFactory(learn_proxy=False)(8, "relu"), NormActFactory()(8, "relu")
    assert [name for name, _ in fixed.named_parameters()] == ["weight", "bias"]
    x = images(2, 8, 3, 3)
    assert torch.equal(fixed(x), learned(x))


def test_frn_and_evonorm_replace_the_activation() -> None:
    for norm, name in (("frn", "tlu"), ("evonorm_s0", "evonorm_s0")):
        factory = NormActFactory(norm=norm)
        x = images(2, 8, 3, 3)
        assert factory(8, "relu").activation == name
        assert torch.equal(factory(8, "relu")(x), factory(8, "silu")(x))
        assert factory(8, None).activation is None
        assert not torch.equal(factory(8, "relu")(x), factory(8, None)(x))


@pytest.mark.parametrize(
    ("settings", "channels", "num_groups"),
    [
        ({}, 64, 8),
        ({}, 12, 6),
        ({}, 18, 6),
        ({}, 58, 2),
        ({}, 7, 7),
        ({}, 11, 1),
        ({"max_groups": 32}, 64, 32),
        ({"max_groups": 32}, 100, 25),
        ({"num_groups": "auto", "max_groups": 1}, 64, 1),
        ({"channels_per_group": 16}, 64, 4),
        ({"channels_per_group": 16}, 24, 1),
        ({"channels_per_group": 16}, 100, 5),
        ({"channels_per_group": 16}, 8, 1),
        ({"num_groups": 4}, 12, 4),
    ],
)
@pytest.mark.parametrize("norm", ["group", "evonorm_s0"])
def test_groups_fit_every_layer_unless_their_number_is_given(
    norm: str, settings: Dict[str, Any], channels: int, num_groups: int
) -> None:
    layer = NormActFactory(norm=norm, **settings)(channels, "relu")
    assert layer.norm.num_groups == num_groups


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_groups": "all"}, "must be a number or"),
        ({"num_groups": 8, "max_groups": 4}, "max_groups=4 has no effect with num_groups=8"),
        ({"num_groups": 8, "channels_per_group": 4}, "takes the place of num_groups"),
        ({"max_groups": 8, "channels_per_group": 4}, "takes the place of num_groups"),
        ({"max_groups": 0}, "must be at least 1"),
        ({"channels_per_group": 0}, "must be at least 1"),
        ({"norm": "layer", "channels_per_group": 4}, "has no effect with norm 'layer'"),
    ],
)
def test_contradicting_settings_of_groups_are_refused(settings: Dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        NormActFactory(**settings)


def test_a_caller_that_gives_channels_alone_gets_no_activation_by_default() -> None:
    with pytest.raises(TypeError, match="activation"):
        NormActFactory()(64)  # type: ignore[call-arg]


class HalvedNorm(Norm):
    """A norm of a stranger: x / 2, the same in training and evaluation."""

    not_normalized_because = "it halves"

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor, weight: Optional[Tensor] = None, bias: Optional[Tensor] = None) -> Tensor:
        return affine(0.5 * x, weight, bias)

    def evaluation_affine(self) -> Tuple[Tensor, Tensor]:
        half = torch.full((self.channels,), 0.5, dtype=torch.float64)
        return half, torch.zeros_like(half)


def test_a_new_norm_is_a_class_and_a_row_of_the_factory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks, folding, the analysis and conversion take it as it is."""
    monkeypatch.setitem(NORM_KINDS, "halved", NormKind(lambda factory, channels, acts: HalvedNorm(channels), {}))
    factory = NormActFactory(norm="halved")
    layer = factory(8, "relu")
    x = images(2, 8, 3, 3)
    mean, inverse_std = proxy_statistics("relu", layer.weight, layer.bias, layer.proxy_beta, layer.proxy_gamma)
    expected = (torch.relu(0.5 * x) - mean.view(1, -1, 1, 1)) * inverse_std.view(1, -1, 1, 1)
    torch.testing.assert_close(layer(x), expected)
    network = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 1), layer, torch.nn.Conv2d(8, 4, 1)).eval()
    folded, report = fold_for_inference(network)
    assert report.layers[0].norm_into == "0" and report.layers[0].output == "moved"
    torch.testing.assert_close(folded(x), network(x))
    assert find_normalizations(network) == ({}, {"1": "it halves"})
    converted, _ = convert_norm(torch.nn.Sequential(torch.nn.BatchNorm2d(8), torch.nn.ReLU()), factory)
    assert isinstance(converted[0].norm, HalvedNorm)


DEFAULTS: Dict[str, Dict[str, Any]] = {
    "group": {
        "proxy": True,
        "num_groups": "auto",
        "max_groups": None,
        "channels_per_group": None,
        "grouping": "contiguous",
        "eps": 1e-5,
        "proxy_eps": 0.03,
    },
    "layer": {"proxy": True, "num_groups": None, "grouping": None, "eps": 1e-5, "learn_proxy": True},
    "batch+ws": {"proxy": True, "num_groups": None, "norm_batch_size": None, "proxy_method": "exact"},
    "frn": {"proxy": False, "eps": 1e-6, "proxy_eps": None, "proxy_method": None, "learn_proxy": None},
    "evonorm_s0": {"proxy": False, "num_groups": "auto", "grouping": "contiguous", "eps": 1e-5},
    "none": {"proxy": False, "eps": None, "num_groups": None},
}


@pytest.mark.parametrize("norm", sorted(DEFAULTS))
def test_defaults_are_filled_in_where_a_norm_uses_them(norm: str) -> None:
    factory = NormActFactory(norm=norm)
    assert {field: getattr(factory, field) for field in DEFAULTS[norm]} == DEFAULTS[norm]
    given = {field: value for field, value in DEFAULTS[norm].items() if value is not None}
    assert NormActFactory(norm=norm, **given) == factory


REFUSED = [
    ({"norm": "grp"}, "unknown; use one of batch"),
    ({"norm": "frn+ws"}, "unknown"),
    ({"norm": "frn", "proxy": True}, "proxy composes with"),
    ({"norm": "none", "proxy": True}, "proxy composes with"),
    ({"norm": "layer", "num_groups": 4}, "num_groups=4 has no effect with norm 'layer'"),
    ({"norm": "batch", "grouping": "strided"}, "grouping='strided' has no effect"),
    ({"norm": "group", "norm_batch_size": 4}, "norm_batch_size=4 has no effect"),
    ({"norm": "none", "eps": 1e-3}, "eps=0.001 has no effect"),
    ({"proxy": False, "proxy_eps": 0.1}, "proxy_eps=0.1 has no effect with proxy=False"),
    ({"proxy": False, "learn_proxy": False}, "learn_proxy=False has no effect"),
    ({"norm": "frn", "proxy_method": "exact"}, "proxy_method='exact' has no effect"),
    ({"num_samples": 100}, "num_samples=100 has no effect"),
    ({"proxy_method": "quick"}, "exact, sampled"),
    ({"grouping": "random"}, "contiguous, strided"),
    ({"kernel": "fast"}, "auto, fused, reference"),
    ({"norm": "batch", "kernel": "fused"}, "layer, instance, group"),
    ({"norm": "batch", "recompute": True}, "recompute=True needs"),
    ({"kernel": "reference", "recompute": True}, "recompute=True needs"),
    ({"num_groups": 0}, "at least 1"),
    ({"eps": -1.0}, "negative"),
]


@pytest.mark.parametrize(("fields", "words"), REFUSED)
def test_fields_that_a_norm_does_not_use_are_refused(fields: Dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        NormActFactory(**fields)


def test_wrong_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="use one of 1, 2, 3, 4, 6, 12"):
        NormActFactory(num_groups=8)(12, "relu")
    with pytest.raises(ValueError, match="unknown activation 'rleu'"):
        NormActFactory()(8, "rleu")


def test_the_factory_is_frozen() -> None:
    with pytest.raises(AttributeError):
        NormActFactory().norm = "layer"  # type: ignore[misc]


def test_convolutions_are_weight_standardized_under_ws_alone() -> None:
    assert type(NormActFactory(norm="group+ws").conv2d(8, 8, 3, padding=1)) is WeightStandardizedConv2d
    assert type(NormActFactory(norm="group").conv2d(8, 8, 3, padding=1)) is nn.Conv2d


def test_gamma_and_beta_alone_take_no_weight_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), NormActFactory()(8, "relu"), NormActFactory()(8, None), nn.BatchNorm2d(8))
    assert affine_parameter_names(model) == {"1.weight", "1.bias", "2.weight", "3.weight", "3.bias"}
    assert affine_parameter_names(NormActFactory()(8, "relu")) == {"weight", "bias"}


@pytest.mark.parametrize("norm", norm_names())
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=NEEDS_NEW_TORCH)])
def test_half_precision_inputs_give_outputs_of_their_type_near_the_float32_ones(norm: str, dtype: torch.dtype) -> None:
    layer = randomize(NormActFactory(norm=norm)(8, "silu"))
    x = images(4, 8, 6, 6).to(dtype)
    out = layer(x)
    assert out.dtype == dtype
    # A handful of roundings of 2^-9 (bfloat16) on values up to 5.
    torch.testing.assert_close(out.float(), layer(x.float()), atol=0.06, rtol=0.03)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == dtype
        assert layer(x.float()).dtype == torch.float32


def combinations() -> List[Any]:
    cases: List[Any] = [(norm, activation, {}) for norm in norm_names() for activation in ("relu", "silu", None)]
    cases += [(norm, "hard_swish", {"proxy_method": "sampled", "kernel": "reference"}) for norm in WITH_PROXY]
    cases += [("group", "gelu", {"grouping": "strided"}), ("layer", "relu6", {"learn_proxy": False})]
    return cases


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize(("norm", "activation", "fields"), combinations())
def test_traces_give_equal_outputs(norm: str, activation: Optional[str], fields: Dict[str, Any]) -> None:
    fields = {**fields, "kernel": "reference"}
    layer = randomize(NormActFactory(norm=norm, **fields)(8, activation))
    x, other = images(4, 8, 3, 3), images(8, 8, 3, 3)[4:]
    # Batch norm counts in training: each candidate gets a layer in the same state.
    traced = torch.jit.trace(copy.deepcopy(layer).eval(), (x,), check_trace=False)
    assert torch.equal(traced(other), copy.deepcopy(layer).eval()(other))
    symbolic = torch.fx.symbolic_trace(copy.deepcopy(layer))
    assert torch.equal(symbolic(other), copy.deepcopy(layer)(other))


@NEEDS_NEW_TORCH
@pytest.mark.parametrize(("norm", "activation", "fields"), combinations())
def test_a_compiled_layer_gives_equal_outputs(norm: str, activation: Optional[str], fields: Dict[str, Any]) -> None:
    layer = randomize(NormActFactory(norm=norm, **{**fields, "kernel": "reference"})(8, activation))
    other = images(8, 8, 3, 3)[4:]
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="eager")
    assert torch.equal(compiled(other), copy.deepcopy(layer)(other))


def test_a_layer_survives_copies_and_pickles() -> None:
    layer = randomize(NormActFactory()(8, "silu"))
    x = images(2, 8, 3, 3)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(again(x), layer(x))
    other = NormActFactory()(8, "silu")
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_a_function_may_be_the_activation() -> None:
    x = images(2, 8, 3, 3)
    layer, named = NormActFactory(kernel="reference")(8, F.silu), NormActFactory(kernel="reference")(8, "silu")
    assert layer.activation == "silu"
    assert torch.equal(layer(x), named(x))


class FakeKernels(SimpleNamespace):
    """Kernels that record their calls and compute with the reference."""

    def __init__(self, reason: Optional[str]) -> None:
        super().__init__(reason=reason, calls=[])

    def why_not_fused(self, x: Tensor, num_groups: int, grouping: str, activation: str) -> Optional[str]:
        self.calls.append(("why_not_fused", num_groups, grouping, activation))
        return self.reason

    def fused_proxy_statistics(self, activation: str, *tensors: Any) -> Any:
        self.calls.append(("fused_proxy_statistics", activation))
        return proxy_statistics(activation, *tensors[:4], eps=tensors[4])

    def fused_norm_act(self, *tensors: Any, recompute: bool, **settings: Any) -> Tensor:
        self.calls.append(("fused_norm_act", recompute))
        return norm_act.reference_norm_act(*tensors, **settings)


def use(kernels: Optional[FakeKernels], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_act, "kernels", kernels)
    monkeypatch.setattr(norm_act, "_logged", set())


def test_auto_uses_the_fused_kernels_where_they_apply_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernels = FakeKernels(None)
    use(kernels, monkeypatch)
    x = images(2, 8, 3, 3)
    layer = NormActFactory(num_groups=4, recompute=True)(8, "relu")
    with caplog.at_level(logging.INFO, "normact.norm_act"):
        outputs = [layer(x), layer(x)]
    assert kernels.calls[:3] == [
        ("why_not_fused", 4, "contiguous", "relu"),
        ("fused_proxy_statistics", "relu"),
        ("fused_norm_act", True),
    ]
    assert [record.getMessage() for record in caplog.records] == ["norm and activation: fused kernels"]
    torch.testing.assert_close(outputs[0], NormActFactory(num_groups=4, kernel="reference")(8, "relu")(x))


def test_layer_and_instance_norm_are_one_group_and_as_many_as_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = FakeKernels(None)
    use(kernels, monkeypatch)
    for norm in ("layer", "instance"):
        NormActFactory(norm=norm)(8, None)(images(2, 8, 3, 3))
    assert [call[1:] for call in kernels.calls if call[0] == "why_not_fused"] == [
        (1, "contiguous", "identity"),
        (8, "contiguous", "identity"),
    ]


def test_without_a_fused_form_auto_is_the_reference_and_fused_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use(FakeKernels("too small"), monkeypatch)
    x = images(2, 8, 3, 3)
    reason = "too small"
    with caplog.at_level(logging.INFO, "normact.norm_act"):
        out = NormActFactory()(8, "relu")(x)
    assert torch.equal(out, NormActFactory(kernel="reference")(8, "relu")(x))
    assert len(caplog.records) == 1 and reason in caplog.text
    with pytest.raises(ValueError, match=reason):
        NormActFactory(kernel="fused")(8, "relu")(x)


def test_the_sampled_method_takes_its_statistics_from_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = FakeKernels(None)
    use(kernels, monkeypatch)
    NormActFactory(proxy_method="sampled")(8, "relu")(images(2, 8, 3, 3))
    assert [call[0] for call in kernels.calls] == ["why_not_fused", "fused_norm_act"]
