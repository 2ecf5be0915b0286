"""Which parameters decay, and what an update does to a number computed by hand."""

from __future__ import annotations

import copy
import inspect
import logging
import math
from typing import Any, Dict, List, Sequence

import pytest
import torch
from timm.optim import RMSpropTF as RMSpropTimm
from torch import nn

from configs.schema.learning import OptimizerConfig
from models import build_model
from normact import NormAct, NormActFactory, affine_parameter_names
from training.lamb import Lamb
from training.optimizer import build_optimizer, load_optimizer_state, set_learning_rate
from training.rmsprop import RMSpropTF


class Scalars(nn.Module):
    """Two one-number parameters: loss = weight + gamma, so that both gradients are 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        self.gamma = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        (self.weight + self.gamma).sum().backward()
        optimizer.step()


def test_decayed_and_undecayed_updates_equal_hand_computed_numbers() -> None:
    # lr .1, momentum .5, decay .25. gamma: v 1, 1.5 -> 2 - .1 - .15 = 1.75.
    # weight: v = 1 + .25*2 = 1.5 -> 1.85; v = .75 + 1 + .25*1.85 = 2.2125 -> 1.62875.
    model = Scalars()
    config = OptimizerConfig(name="sgd", learning_rate=0.1, momentum=0.5, weight_decay=0.25)
    optimizer = build_optimizer(config, model, {"gamma"})
    model.step(optimizer)
    model.step(optimizer)
    assert model.gamma.item() == pytest.approx(1.75, rel=1e-14)
    assert model.weight.item() == pytest.approx(1.62875, rel=1e-14)


def test_nesterov_update_equals_hand_computed_numbers() -> None:
    # gamma: v 1, step .1 * (1 + .5*1) = .15 -> 1.85; v 1.5, step .1 * (1 + .75) = .175 -> 1.675.
    model = Scalars()
    config = OptimizerConfig(name="sgd", learning_rate=0.1, momentum=0.5, nesterov=True)
    optimizer = build_optimizer(config, model, {"gamma"})
    model.step(optimizer)
    model.step(optimizer)
    assert model.gamma.item() == pytest.approx(1.675, rel=1e-14)


GRADIENTS = [0.5, -0.3, 0.2, 0.1, -0.1]
RMSPROP: Dict[str, Any] = {"square_decay": 0.9, "momentum": 0.9, "eps": 1e-3}
ADAM: Dict[str, Any] = {"betas": (0.9, 0.99), "eps": 1e-6}


def trace(optimizer: torch.optim.Optimizer, weight: nn.Parameter, rates: Sequence[float] = (0.1,) * 5) -> List[float]:
    """Return the weight after each of five updates with GRADIENTS."""
    values = []
    for gradient, rate in zip(GRADIENTS, rates):
        weight.grad = torch.full_like(weight, gradient)
        set_learning_rate(optimizer, rate)
        optimizer.step()
        values.append(float(weight.detach().flatten()[0]))
    return values


def one(value: float = 1.0, *shape: int) -> nn.Parameter:
    return nn.Parameter(torch.full(shape or (1,), value, dtype=torch.float64))


def test_rmsprop_equals_tensorflows_form_step_by_step_and_not_torchs() -> None:
    # Step 1 by hand: s = .9 + .1 * .25 = .925, v = .1 * .5 / sqrt(.926) = .0519594, w = .9480406.
    weight = one()
    rates = [0.1, 0.1, 0.05, 0.05, 0.2]
    values = trace(RMSpropTF([weight], 0.1, **RMSPROP), weight, rates)
    assert values[0] == pytest.approx(0.9480406, abs=1e-7)
    square, velocity, expected, w = 1.0, 0.0, [], 1.0
    for gradient, rate in zip(GRADIENTS, rates):
        square = 0.9 * square + 0.1 * gradient**2
        velocity = 0.9 * velocity + rate * gradient / math.sqrt(square + 1e-3)
        w -= velocity
        expected.append(w)
    assert values == pytest.approx(expected, rel=1e-12)
    weight = one()
    torchs = trace(torch.optim.RMSprop([weight], 0.1, alpha=0.9, momentum=0.9, eps=1e-3), weight, rates)
    assert abs(torchs[-1] - values[-1]) > 0.3


def test_rmsprop_equals_timms_tensorflow_form_with_weight_decay() -> None:
    ours, timms = one(2.0, 3, 2), one(2.0, 3, 2)
    theirs = RMSpropTimm([timms], 0.1, alpha=0.9, momentum=0.9, eps=1e-3, weight_decay=0.1)
    assert trace(RMSpropTF([ours], 0.1, weight_decay=0.1, **RMSPROP), ours) == pytest.approx(trace(theirs, timms))


def test_lamb_equals_hand_computed_numbers_on_matrices_and_adam_on_vectors() -> None:
    # All entries equal: m / sqrt(v) after bias correction is 1 at step 1, so u = 1 / (1 + 2e-6) + .1 * 2 in each entry,
    # and the step is rate * |w| / |u| * u = rate * w: the matrix loses a tenth of its length whatever the gradient.
    matrix, vector = one(2.0, 2, 2), one(2.0, 4)
    assert trace(Lamb([matrix], 0.1, weight_decay=0.1, **ADAM), matrix)[0] == pytest.approx(1.8, rel=1e-12)
    first = trace(Lamb([vector], 0.1, weight_decay=0.1, **ADAM), vector)[0]
    assert first == pytest.approx(2 - 0.1 * (0.5 / (0.5 + 1e-6) + 0.2), rel=1e-12)
    adam, plain = one(2.0, 4), one(2.0, 4)
    assert trace(Lamb([adam], 0.1, **ADAM), adam) == pytest.approx(trace(torch.optim.Adam([plain], 0.1, **ADAM), plain))


FUSED_KINDS = [{"name": "sgd", "momentum": 0.9, "nesterov": True}, {"name": "adamw", **ADAM}]


def convolution(memory_format: torch.memory_format) -> nn.Module:
    torch.manual_seed(5)
    return nn.Conv2d(3, 4, 3).to(memory_format=memory_format)  # type: ignore[call-overload]  # missing annotation


def update(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    model(torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("fields", FUSED_KINDS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_fused_updates_equal_plain_ones_to_rounding_and_continue_to_the_bit(
    fields: Dict[str, Any], memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fused kernels walk through memory: weights, gradients and momentum must lie in the same order.
    config = OptimizerConfig(learning_rate=0.01, weight_decay=0.1, **fields)
    fused, plain, continued = (convolution(memory_format) for _ in range(3))
    optimizer = build_optimizer(config, fused, {"bias"})
    monkeypatch.setattr("training.optimizer.fused_where_possible", lambda kind, groups, **given: kind(groups, **given))
    reference = build_optimizer(config, plain, {"bias"})
    for seed in range(4):
        if seed == 2:
            continued.load_state_dict(fused.state_dict())
            monkeypatch.undo()
            resumed = build_optimizer(config, continued, {"bias"})
            load_optimizer_state(resumed, copy.deepcopy(optimizer.state_dict()))
        update(fused, optimizer, seed)
        update(plain, reference, seed)
        if seed >= 2:
            update(continued, resumed, seed)
    for ours, expected in zip(fused.parameters(), plain.parameters()):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)  # float32 rounding of four updates
    for ours, expected in zip(continued.parameters(), fused.parameters()):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("fields", FUSED_KINDS)
def test_a_checkpoint_of_plain_updates_continues_with_plain_ones_and_the_reverse_only_where_torch_can(
    fields: Dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = OptimizerConfig(learning_rate=0.01, **fields)
    model = convolution(torch.contiguous_format)
    fused = build_optimizer(config, model, set())
    monkeypatch.setattr("training.optimizer.fused_where_possible", lambda kind, groups, **given: kind(groups, **given))
    plain = build_optimizer(config, model, set())
    for optimizer in (fused, plain):  # without an update there is no state to go on from
        update(model, optimizer, 0)
    fused_state, plain_state = copy.deepcopy(fused.state_dict()), copy.deepcopy(plain.state_dict())
    load_optimizer_state(fused, plain_state)
    load_optimizer_state(plain, fused_state)
    assert not fused.param_groups[0].get("fused") and not plain.param_groups[0].get("fused")
    update(model, fused, 1)
    update(model, plain, 1)


@pytest.mark.skipif("fused" not in inspect.signature(torch.optim.SGD).parameters, reason="this torch has no fused SGD")
def test_sgd_is_fused_on_this_device_where_torch_can() -> None:
    optimizer = build_optimizer(OptimizerConfig(name="sgd", learning_rate=0.1), Scalars(), set())
    assert optimizer.param_groups[0]["fused"] is True


class _OldSGD(torch.optim.SGD):
    """As in torch 2.0, which has no fused form."""

    def __init__(self, params: Any, lr: float, momentum: float, nesterov: bool, **unknown: Any) -> None:
        if unknown:
            raise TypeError(f"unexpected keyword argument {next(iter(unknown))}")
        super().__init__(params, lr=lr, momentum=momentum, nesterov=nesterov)


def test_an_older_torch_without_fused_updates_gets_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.optim.SGD", _OldSGD)
    model = Scalars()
    optimizer = build_optimizer(OptimizerConfig(name="sgd", learning_rate=0.1, momentum=0.5), model, set())
    model.step(optimizer)
    assert model.gamma.item() == pytest.approx(1.9, rel=1e-14) and not optimizer.param_groups[0]["fused"]


@pytest.mark.parametrize("direction", [1.0, 0.0])
def test_lamb_of_zero_weights_or_zero_gradients_stays_finite(direction: float) -> None:
    weight = one(0.0, 2, 2)
    weight.grad = torch.full_like(weight, direction)
    Lamb([weight], 0.1, **ADAM).step()
    assert weight.detach().flatten().tolist() == pytest.approx([-0.1 * direction] * 4, rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"name": "sgd", "momentum": 0.9}, torch.optim.SGD),
        ({"name": "rmsprop", **RMSPROP}, RMSpropTF),
        ({"name": "adamw", **ADAM}, torch.optim.AdamW),
        ({"name": "lamb", **ADAM}, Lamb),
    ],
)
def test_every_optimizer_decays_its_first_group_alone_and_continues_from_its_state(
    fields: Dict[str, Any], kind: type
) -> None:
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.25, **fields)
    model, resumed = Scalars(), Scalars()
    optimizer = build_optimizer(config, model, {"gamma"})
    assert type(optimizer) is kind
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.25, 0.0]
    model.step(optimizer)
    assert model.weight.item() < model.gamma.item()
    resumed.load_state_dict(model.state_dict())
    continued = build_optimizer(config, resumed, {"gamma"})
    continued.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    model.step(optimizer)
    resumed.step(continued)
    assert torch.equal(model.weight, resumed.weight) and torch.equal(model.gamma, resumed.gamma)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"name": "rmsprop"}, "optimizer rmsprop needs momentum"),
        ({"name": "adamw", "eps": 1e-8}, "optimizer adamw needs betas"),
        ({"name": "lamb", "betas": (0.9, 1.0), "eps": 1e-8}, r"betas \[0.9, 1.0\] must be two numbers"),
        ({"name": "sgd", "eps": 1e-3}, "eps = 0.001 has no effect with optimizer sgd"),
        ({"name": "adamw", **ADAM, "momentum": 0.9}, "momentum = 0.9 has no effect with optimizer adamw"),
    ],
)
def test_fields_that_an_optimizer_lacks_or_does_not_use_are_refused(fields: Dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        OptimizerConfig(learning_rate=0.1, **fields)


def test_weight_decay_of_a_network_spares_the_norms_scale_and_shift_alone() -> None:
    network = build_model("efficientnet_small", num_classes=3, norm_act=NormActFactory(norm="group", num_groups=4))
    config = OptimizerConfig(name="sgd", learning_rate=0.1, weight_decay=0.5)
    decayed, _ = build_optimizer(config, network, affine_parameter_names(network)).param_groups
    ids = {id(parameter) for parameter in decayed["params"]}
    for name, parameter in network.named_parameters():
        module, _, kind = name.rpartition(".")
        is_norm = isinstance(network.get_submodule(module), NormAct)
        assert (id(parameter) in ids) == (not is_norm or kind in ("proxy_beta", "proxy_gamma")), name
    for name in ("classifier.bias", "stages.1.0.squeeze_excite.reduce.bias", "stem.norm.proxy_beta"):
        assert id(dict(network.named_parameters())[name]) in ids


def test_set_learning_rate_reaches_every_group() -> None:
    model = Scalars()
    optimizer = build_optimizer(OptimizerConfig(name="sgd", learning_rate=0.1), model, {"gamma"})
    set_learning_rate(optimizer, 0.25)
    model.step(optimizer)
    assert (model.weight.item(), model.gamma.item()) == (1.75, 1.75)


def test_every_trainable_parameter_is_in_exactly_one_group() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 2))
    config = OptimizerConfig(name="sgd", learning_rate=0.1, weight_decay=0.5)
    decayed, undecayed = build_optimizer(config, model, {"1.weight", "1.bias"}).param_groups
    assert (decayed["weight_decay"], undecayed["weight_decay"]) == (0.5, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [names[id(parameter)] for parameter in decayed["params"]] == ["0.weight", "3.weight", "3.bias"]
    assert [names[id(parameter)] for parameter in undecayed["params"]] == ["1.weight", "1.bias"]


def test_a_shared_parameter_is_undecayed_under_either_of_its_names() -> None:
    model = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    model["second"].weight = model["first"].weight
    config = OptimizerConfig(name="sgd", learning_rate=0.1, weight_decay=0.5)
    decayed, undecayed = build_optimizer(config, model, {"second.weight"}).param_groups
    assert [parameter is model["first"].weight for parameter in undecayed["params"]] == [True]
    assert len(decayed["params"]) == 2


def test_frozen_parameters_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    model = Scalars()
    model.weight.requires_grad_(False)
    with caplog.at_level(logging.INFO, logger="training.optimizer"):
        groups = build_optimizer(OptimizerConfig(name="sgd", learning_rate=0.1), model, {"gamma"}).param_groups
    assert [group["params"] for group in groups] == [[model.gamma]]
    assert "1 parameters are frozen and not trained: weight" in caplog.text


def test_unknown_undecayed_names_are_errors() -> None:
    with pytest.raises(ValueError, match="1 names without weight decay are not parameters of the model: gama;"):
        build_optimizer(OptimizerConfig(name="sgd", learning_rate=0.1), Scalars(), {"gama"})


def test_a_model_with_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="no parameter to train; 2 are frozen"):
        build_optimizer(OptimizerConfig(name="sgd", learning_rate=0.1), Scalars().requires_grad_(False), set())


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adamw", "lamb"])
def test_loaded_state_takes_the_layout_of_the_parameters_so_that_sums_over_it_round_as_before(name: str) -> None:
    fields: Dict[str, Any] = {"sgd": {"momentum": 0.9}, "rmsprop": {"momentum": 0.9, "square_decay": 0.9, "eps": 1e-3}}
    moments = {"betas": (0.9, 0.99), "eps": 1e-6}
    config = OptimizerConfig(name=name, learning_rate=0.1, **fields.get(name, moments))
    ends = []
    for saves in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Conv2d(16, 32, 3, bias=False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = build_optimizer(config, model, set())
        for step in range(3):
            if saves and step == 2:
                state = copy.deepcopy(optimizer.state_dict())
                for entries in state["state"].values():
                    entries.update({key: v.contiguous() for key, v in entries.items() if isinstance(v, torch.Tensor)})
                load_optimizer_state(optimizer, state)
            model.weight.grad = torch.randn(32, 16, 3, 3).to(memory_format=torch.channels_last)
            optimizer.step()
        ends.append(model.weight.detach().clone())
    assert torch.equal(*ends)
    stored = [v for v in optimizer.state[model.weight].values() if isinstance(v, torch.Tensor) and v.dim() == 4]
    assert stored and all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in stored)
