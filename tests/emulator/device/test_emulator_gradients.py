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


class Force(torch.nn.Module):
    """E(x) = sum(w x^3) and its derivative -3 w x^2, as molecular dynamics needs it."""

    def __init__(self, square=lambda x: x**2):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.square = square

    def forward(self, x, target=None):
        x = x.clone().requires_grad_()
        energy = (self.weight * self.square(x) * x).sum()
        (slope,) = torch.autograd.grad(energy, x, create_graph=self.training)
        return -slope if target is None else poptorch.identity_loss((slope - target) ** 2, "mean")


@pytest.mark.parametrize("iterations", [1, 3])
def test_forward_may_ask_for_gradients_itself_in_inference(iterations):
    executor = poptorch.inferenceModel(Force().eval(), poptorch.Options().deviceIterations(iterations))
    for _ in range(2):
        forces = executor(torch.arange(6.0))
        assert forces.tolist() == [0, -3, -12, -27, -48, -75] and not forces.requires_grad


def test_a_gradient_of_forward_is_trained():
    model = Force()
    executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    assert executor(torch.ones(1), torch.ones(1)).item() == 4  # (3 w - 1)^2
    assert model.weight.item() == pytest.approx(1 - 0.1 * 2 * 2 * 3)


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (torch.nn.functional.softplus, "softplus_backward"),
        (torch.tanh, "tanh_backward"),
        (lambda x: x[torch.tensor([0, 0, 1])][:2], "_index_put_impl_"),
        (lambda x: x.index_select(0, torch.tensor([0, 0], device="ipu")), "index_add"),
    ],
)
def test_operators_of_a_gradient_in_forward_need_a_handler_like_others(function, operator):
    with pytest.raises(poptorch.Error, match=rf"Unsupported ops found in compiled model: \[.*aten::{operator}"):
        poptorch.inferenceModel(Force(function).eval())(torch.ones(2))


@pytest.mark.parametrize("part", [lambda x: x[1:], lambda x: x[0]])
def test_gradients_of_parts_come_down_to_what_has_handlers(part):
    class Part(torch.nn.Module):
        def forward(self, x):
            x = x.clone().requires_grad_()
            return torch.autograd.grad((part(x) ** 2).sum(), x)[0]

    x = torch.ones(2)
    expected = torch.zeros(2)
    part(expected).fill_(2)
    assert torch.equal(poptorch.inferenceModel(Part())(x), expected)


def test_without_gradients_in_the_program_forward_has_none_either():
    with torch.no_grad(), pytest.raises(RuntimeError, match="does not require grad"):
        poptorch.inferenceModel(Force().eval())(torch.ones(1))


def test_a_model_that_asks_for_no_gradients_keeps_nothing_for_them():
    model = torch.nn.Linear(2, 1)
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output.requires_grad))
    executor = poptorch.inferenceModel(model)
    executor(torch.ones(1, 2))
    assert seen == [True, False]  # compiled, then run


@pytest.mark.parametrize(
    "divided", [lambda x: x // 2, lambda x: torch.floor_divide(x, 2), lambda x: 3 // x, lambda x: x.floor_divide(2)]
)
def test_the_gradient_of_a_quotient_rounded_down_is_0(divided):
    model = Scaled(lambda x: divided(x * 5) + x)
    assert poptorch.inferenceModel(model)(torch.ones(1)).item() == divided(torch.tensor(5.0)).item() + 1
    assert trained_weight(model) == 0  # 1 - 1
