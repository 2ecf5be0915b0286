"""Which parameters decay, and what an update does to a number computed by hand."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from configs.learning_sections import OptimizerConfig
from training.optimizer import build_optimizer, set_learning_rate


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
    with pytest.raises(ValueError, match="1 names without weight decay are no parameters of the model: gama;"):
        build_optimizer(OptimizerConfig(name="sgd", learning_rate=0.1), Scalars(), {"gama"})


def test_a_model_with_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="no parameter to train; 2 are frozen"):
        build_optimizer(OptimizerConfig(name="sgd", learning_rate=0.1), Scalars().requires_grad_(False), set())
