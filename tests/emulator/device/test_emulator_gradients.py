"""The device differentiates what forward() computes: a program's own backward passes and hooks never run."""

import logging

import poptorch
import pytest
import torch
from torch.utils.checkpoint import checkpoint


class Twice(torch.autograd.Function):
    """2 x, with a gradient that is 50 times too large."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        ctx.set_materialize_grads(False)
        assert ctx.needs_input_grad == (True,)
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 100


class TwiceWithContext(torch.autograd.Function):
    """The same in the form that torch 2.0 brought."""

    @staticmethod
    def forward(x):
        return x * 2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 100


class Rounded(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def hooked(x):
    handle = x.register_hook(lambda gradient: gradient * 100)
    result = x * 2
    handle.remove()
    result.register_hook(lambda gradient: gradient * 100)
    return result


class Scaled(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.function = function

    def forward(self, x):
        return poptorch.identity_loss(self.function(self.weight * x), "sum")


def trained_weight(model, accumulation=1):
    """Return the weight after one update with learning rate 1."""
    options = poptorch.Options()
    options.Training.gradientAccumulation(accumulation)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=1.0))
    executor(torch.ones(accumulation))
    return model.weight.item()


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("poptorch::python"), "propagate", True)  # caplog listens to the root logger
    return lambda: [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def applied_late(x):
    """Unlike Twice.apply in the table below, which is taken before any model runs, as libraries do."""
    return Twice.apply(x)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("function", [Twice.apply, applied_late, TwiceWithContext.apply, hooked])
def test_the_gradient_is_that_of_the_operations_in_forward(function, accumulation):
    assert trained_weight(Scaled(function), accumulation) == -1  # 1 - 2


def test_a_straight_through_estimator_does_not_train():
    assert trained_weight(Scaled(Rounded.apply)) == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_functions_train_as_they_are(reentrant):
    function = Scaled(lambda x: checkpoint(lambda y: y * 2, x, use_reentrant=reentrant))
    assert trained_weight(function) == -1


def test_a_model_is_told_of_backward_passes_and_hooks_that_never_run(warnings):
    trained_weight(Scaled(Twice.apply))
    assert [line.split(" ")[0] for line in warnings()] == ["Twice.backward()"]
    trained_weight(Scaled(hooked))
    assert len(warnings()) == 3 and "hook on a tensor's gradient never runs" in warnings()[-1]


def test_hooks_of_modules_and_parameters_never_run_and_stay_where_they_are(warnings):
    model = torch.nn.Sequential(Scaled(lambda x: x * 2))
    calls = []
    model.register_full_backward_hook(lambda *arguments: calls.append("module"))
    model[0].register_full_backward_hook(lambda *arguments: calls.append("part"))
    model[0].weight.register_hook(lambda gradient: calls.append("weight"))
    executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    executor(torch.ones(1))
    assert calls == [] and model[0].weight.item() == -1
    (warning,) = warnings()
    assert warning.endswith("module itself, module 0, parameter 0.weight")
    executor.destroy()
    model(torch.ones(1)).backward()
    assert sorted(calls) == ["module", "part", "weight"]


def test_torchs_own_backward_pass_is_as_before_once_the_model_has_run():
    trained_weight(Scaled(Twice.apply))
    x = torch.ones(1, requires_grad=True)
    x.register_hook(lambda gradient: gradient + 1)
    Twice.apply(x).backward()
    assert x.grad.item() == 101


def test_the_gradient_of_a_printed_tensor_is_printed(capfd):
    trained_weight(Scaled(lambda x: poptorch.ipu_print_tensor(x * 2, "double") * 3))
    printed = capfd.readouterr().err
    assert "double: (2.000)" in printed and "double_gradient: (3.000)" in printed
