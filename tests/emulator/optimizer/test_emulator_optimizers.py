"""The device's optimizers: formulas in float64 by hand, constants, states, warnings."""

import copy
import io
import math
from typing import Any, Dict, List

import poptorch
import pytest
import torch

START = [0.5, -1.5, 2.0]
GRADIENTS = [[1.0, -0.5, 0.25], [0.5, 0.5, -1.0], [-2.0, 1.0, 0.125]]


class Linear(torch.nn.Module):
    """A loss whose gradient is the input."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(START))

    def forward(self, gradient):
        return poptorch.identity_loss(self.w * gradient, "sum")


def train(make, steps=GRADIENTS):
    """Weights after each step."""
    model = Linear()
    executor = poptorch.trainingModel(model, optimizer=make(model.parameters()))
    history = []
    for gradient in steps:
        executor(torch.tensor(gradient))
        history.append(model.w.detach().clone())
    return torch.stack(history)


def by_hand(update):
    """update(w, g, state, t) on lists of floats, one weight at a time; state is a dictionary."""
    weights = list(START)
    states: List[Dict[str, Any]] = [{} for _ in START]
    history = []
    for t, gradient in enumerate(GRADIENTS, start=1):
        weights = [update(w, g, s, t) for w, g, s in zip(weights, gradient, states)]
        history.append(weights)
    return torch.tensor(history)


def sgd(lr, mm=0.0, dm=0.0, wd=0.0, nesterov=False):
    def update(w, g, s, t):
        g = g + wd * w
        s["v"] = mm * s.get("v", 0.0) + (1 - dm) * g
        return w - lr * (g + mm * s["v"] if nesterov else s["v"])

    return update


def adam(lr, wd, decoupled, b1=0.9, b2=0.999, eps=1e-8, corrected=True):
    def update(w, g, s, t):
        g = g if decoupled else g + wd * w
        s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
        s["s"] = b2 * s.get("s", 0.0) + (1 - b2) * g * g
        c1, c2 = (1 - b1**t, 1 - b2**t) if corrected else (1.0, 1.0)
        step = (s["m"] / c1) / (math.sqrt(s["s"] / c2) + eps)
        return w - lr * (step + (wd * w if decoupled else 0.0))

    return update


def rmsprop(lr, a=0.99, eps=1e-8, mm=0.0, wd=0.0, tf=False, centered=False):
    def update(w, g, s, t):
        g = g + wd * w
        s["s"] = a * s.get("s", 1.0 if tf else 0.0) + (1 - a) * g * g
        s["g"] = a * s.get("g", 0.0) + (1 - a) * g
        variance = s["s"] - s["g"] ** 2 if centered else s["s"]
        step = lr * g / math.sqrt(variance + eps) if tf else g / (math.sqrt(variance) + eps)
        s["b"] = mm * s.get("b", 0.0) + step
        return w - (s["b"] if tf else lr * s["b"])

    return update


P = poptorch.optim
FORMULAS = [
    ("sgd", lambda p: P.SGD(p, lr=0.1, weight_decay=0.3), sgd(0.1, wd=0.3)),
    ("torch sgd", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), sgd(0.1, mm=0.9)),
    ("torch dampening without momentum", lambda p: torch.optim.SGD(p, lr=0.1, dampening=0.4), sgd(0.1, dm=0.4)),
    (
        "dampened decay without momentum",
        lambda p: P.SGD(p, lr=0.1, dampening=0.4, weight_decay=0.3, loss_scaling=8.0),
        sgd(0.1, dm=0.4, wd=0.3),
    ),
    # torch's first velocity is the gradient itself; the device's starts at 0
    ("dampening", lambda p: P.SGD(p, lr=0.1, momentum=0.9, dampening=0.4), sgd(0.1, mm=0.9, dm=0.4)),
    (
        "dampened decay",
        lambda p: P.SGD(p, lr=0.1, momentum=0.9, dampening=0.4, weight_decay=0.3),
        sgd(0.1, mm=0.9, dm=0.4, wd=0.3),
    ),
    (
        "combined",
        lambda p: P.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.3, use_combined_accum=True, velocity_scaling=4.0),
        sgd(0.1, mm=0.9, wd=0.3),
    ),
    ("scaled", lambda p: P.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.3, loss_scaling=8.0), sgd(0.1, mm=0.9, wd=0.3)),
    (
        "nesterov",
        lambda p: P.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.2),
        sgd(0.1, mm=0.9, wd=0.2, nesterov=True),
    ),
    ("adam", lambda p: P.Adam(p, lr=0.1, weight_decay=0.3), adam(0.1, 0.3, decoupled=False)),
    ("adamw", lambda p: P.AdamW(p, lr=0.1, weight_decay=0.3, loss_scaling=4.0), adam(0.1, 0.3, decoupled=True)),
    ("torch adamw", lambda p: torch.optim.AdamW(p, lr=0.1), adam(0.1, 0.01, decoupled=True)),
    # bias_correction=False has no effect in 3.4
    ("adamw no bias", lambda p: P.AdamW(p, lr=0.1, bias_correction=False), adam(0.1, 0.01, decoupled=True)),
    ("rmsprop", lambda p: P.RMSprop(p, lr=0.1, weight_decay=0.3, momentum=0.9), rmsprop(0.1, wd=0.3, mm=0.9)),
    ("centered", lambda p: P.RMSprop(p, lr=0.1, centered=True, eps=0.1), rmsprop(0.1, centered=True, eps=0.1)),
    (
        "tensorflow",
        lambda p: P.RMSprop(p, lr=0.1, alpha=0.9, momentum=0.9, eps=0.001, use_tf_variant=True),
        rmsprop(0.1, a=0.9, mm=0.9, eps=0.001, tf=True),
    ),
]


@pytest.mark.parametrize("make, update", [row[1:] for row in FORMULAS], ids=[row[0] for row in FORMULAS])
def test_weights_follow_the_devices_formulas(make, update):
    # three float32 steps against float64
    torch.testing.assert_close(train(make), by_hand(update), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("corrected", [True, False])
def test_lamb_scales_each_layer_by_its_trust_ratio(corrected):
    got = train(lambda p: P.LAMB(p, lr=0.1, weight_decay=0.3, max_weight_norm=1.0, bias_correction=corrected))
    weights = torch.tensor(START, dtype=torch.float64)
    mean = square = torch.zeros(3, dtype=torch.float64)
    for t, gradient in enumerate(GRADIENTS, start=1):
        g = torch.tensor(gradient, dtype=torch.float64)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        m, s = (mean / (1 - 0.9**t), square / (1 - 0.999**t)) if corrected else (mean, square)
        u = m / (s.sqrt() + 1e-8) + 0.3 * weights
        weights = weights - 0.1 * min(weights.norm().item(), 1.0) / u.norm() * u
        torch.testing.assert_close(got[t - 1].double(), weights, rtol=1e-4, atol=1e-5)


def clipped(tensor, limit):
    return tensor * (limit / max(tensor.norm().item(), limit))


def clipped_velocity(mm, nesterov):
    """Return SGD's weights with momentum and a loss scale of 4, which is the velocity's too.

    What moves the weights is clipped, the velocity that is kept is not.
    """
    weights, velocity = torch.tensor(START, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for gradient in torch.tensor(GRADIENTS, dtype=torch.float64):
        velocity = mm * velocity + 4.0 * gradient
        weights = weights - clipped(4.0 * gradient + mm * velocity if nesterov else velocity, 3.0) / 4.0
        yield weights


def clipped_adam(wd, decoupled):
    """Without the loss scale, after an L2 penalty."""
    weights = torch.tensor(START, dtype=torch.float64)
    mean = square = torch.zeros(3, dtype=torch.float64)
    for t, gradient in enumerate(torch.tensor(GRADIENTS, dtype=torch.float64), start=1):
        g = clipped(gradient if decoupled else gradient + wd * weights, 0.75)
        mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
        step = mean / (1 - 0.9**t) / ((square / (1 - 0.999**t)).sqrt() + 0.1)
        weights = weights - 0.1 * (step + (wd * weights if decoupled else 0.0))
        yield weights


CLIPPED = [
    (lambda p: P.SGD(p, lr=1.0, momentum=0.9, max_grad_norm=3.0, loss_scaling=4.0), clipped_velocity(0.9, False)),
    (
        lambda p: P.SGD(p, lr=1.0, momentum=0.9, nesterov=True, max_grad_norm=3.0, loss_scaling=4.0),
        clipped_velocity(0.9, True),
    ),
    (
        lambda p: P.Adam(p, lr=0.1, eps=0.1, weight_decay=0.3, max_grad_norm=0.75, loss_scaling=4.0),
        clipped_adam(0.3, decoupled=False),
    ),
    (
        lambda p: P.AdamW(p, lr=0.1, eps=0.1, weight_decay=0.3, max_grad_norm=0.75, loss_scaling=4.0),
        clipped_adam(0.3, decoupled=True),
    ),
]


@pytest.mark.parametrize("make, expected", CLIPPED, ids=["momentum", "nesterov", "adam", "adamw"])
def test_clipping_is_about_what_the_optimizer_makes_of_the_gradient(make, expected):
    # three float32 steps against float64
    torch.testing.assert_close(train(make).double(), torch.stack(list(expected)), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize(
    "reduction, strategy, divisor, limit",
    [
        ("Mean", "Post", 4, 1 / (8 * 4)),
        ("Mean", "Running", 4, 1 / 8),
        ("Sum", "Post", 1, 1 / 8),
    ],
)
def test_without_momentum_the_sum_of_scaled_gradients_is_clipped(reduction, strategy, divisor, limit):
    """max_grad_norm 1, loss scale 8, two accumulation steps on two replicas."""
    options = poptorch.Options().replicationFactor(2)
    options.Training.gradientAccumulation(2)
    options.Training.accumulationAndReplicationReductionType(getattr(poptorch.ReductionType, reduction))
    options.Training.setMeanAccumulationAndReplicationReductionStrategy(
        getattr(poptorch.MeanReductionStrategy, strategy)
    )
    model = Linear()
    optimizer = P.SGD(model.parameters(), lr=1.0, max_grad_norm=1.0, loss_scaling=8.0)
    gradients = torch.tensor([*GRADIENTS, [0.25, 0.0, 1.0]])
    executor = poptorch.trainingModel(model, options, optimizer)
    executor(gradients)
    total = gradients.sum(0) / divisor
    torch.testing.assert_close(model.w.detach(), torch.tensor(START) - clipped(total, limit))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: P.SGD(p, lr=0.1, momentum=0.9, loss_scaling=4.0),
        lambda p: P.SGD(p, lr=0.1, momentum=0.9, use_combined_accum=True),
        lambda p: P.Adam(p, lr=0.1, eps=0.1, loss_scaling=4.0),
        lambda p: P.RMSprop(p, lr=0.1, eps=0.1),
    ],
    ids=["momentum", "combined", "adam", "rmsprop"],
)
def test_every_optimizer_takes_the_mean_over_accumulation_and_replicas(make):
    options = poptorch.Options().replicationFactor(2)
    options.Training.gradientAccumulation(2)
    model = Linear()
    executor = poptorch.trainingModel(model, options, make(model.parameters()))
    executor(torch.tensor([*GRADIENTS, [0.25, 0.0, 1.0]]))
    mean = [[-0.0625, 0.25, 0.09375]]
    torch.testing.assert_close(model.w.detach(), train(make, mean)[0])


def test_clipping_takes_the_norm_over_all_weights_and_leaves_short_steps_alone():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))

        def forward(self, gradients):
            return poptorch.identity_loss(self.a * gradients[0, 0] + self.b * gradients[0, 1], "sum")

    model = Two()
    executor = poptorch.trainingModel(model, optimizer=P.SGD(model.parameters(), lr=1.0, max_grad_norm=2.5))
    executor(torch.tensor([[3.0, 4.0]]))
    assert (model.a.item(), model.b.item()) == (-1.5, -2.0)
    executor(torch.tensor([[1.5, 2.0]]))
    assert (model.a.item(), model.b.item()) == (-3.0, -4.0)


def test_rmsprop_has_no_clipping_even_where_the_attribute_is_set():
    def make(parameters, limit=None):
        optimizer: Any = P.RMSprop(parameters, lr=0.1)
        if limit is not None:
            optimizer.max_grad_norm = limit
        return optimizer

    assert torch.equal(train(lambda p: make(p, 0.1)), train(make))


def test_a_changed_learning_rate_counts_only_after_set_optimizer():
    model = Linear()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    gradient = torch.ones(3)
    executor(gradient)
    optimizer.param_groups[0]["lr"] = 0.25
    executor(gradient)
    assert model.w.tolist() == [w - 2.0 for w in START]
    executor.setOptimizer(optimizer)
    executor(gradient)
    assert model.w.tolist() == [w - 2.25 for w in START]


def test_the_newest_learning_rate_counts_after_the_device_was_given_away_and_taken_back():
    model = Linear()
    optimizer = P.SGD(model.parameters(), lr=0.5)
    training, validation = poptorch.trainingModel(model, optimizer=optimizer), poptorch.inferenceModel(model)
    weights = []
    for rate in (0.5, 0.25, 0.125):
        optimizer.param_groups[0]["lr"] = rate
        training.setOptimizer(optimizer)
        training(torch.ones(3))
        training.detachFromDevice()
        validation(torch.ones(3))
        validation.detachFromDevice()
        weights.append(model.w[0].item())
    assert weights == [0.0, -0.25, -0.375]


def test_numbers_of_a_loaded_state_are_shown_until_there_are_new_ones_but_not_computed_with():
    model = Linear()
    optimizer = P.SGD(model.parameters(), lr=0.5, loss_scaling=2.0)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    executor.compile(torch.ones(3))
    state = optimizer.state_dict()
    name = "scaledLearningRate0___specific___w"
    loaded = {name: torch.tensor(4.0), "lossScaling_FLOAT": torch.tensor(8.0)}
    # only the tensors: torch's part of a state, which has the rate too, goes to the program's optimizer
    optimizer.load_state_dict({**state, "ipu_param": {**state["ipu_param"], **loaded}})
    executor(torch.ones(3))
    assert model.w[0].item() == 0.0
    assert optimizer.state_dict()["ipu_param"][name] == 4.0
    optimizer.param_groups[0]["lr"] = 0.25
    executor.setOptimizer(optimizer)
    executor(torch.ones(3))
    assert model.w[0].item() == -0.25
    assert optimizer.state_dict()["ipu_param"][name] == 0.125


@pytest.mark.parametrize("name, value", [("momentum", 0.5), ("weight_decay", 0.1)])
def test_an_argument_left_out_is_a_constant_that_cannot_change_after_compilation(name, value):
    model = Linear()
    optimizer = P.SGD(model.parameters(), lr=1.0)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    executor(torch.ones(3))
    optimizer.param_groups[0][name] = value
    with pytest.raises(poptorch.Error, match=f"{name} is a constant"):
        executor.setOptimizer(optimizer)


def test_a_constant_cannot_become_variable_after_compilation_though_its_value_stays():
    model = Linear()
    executor = poptorch.trainingModel(model, optimizer=P.SGD(model.parameters(), lr=1.0))
    executor(torch.ones(3))
    with pytest.raises(poptorch.Error, match=r"weight_decay was a constant .* cannot become variable"):
        executor.setOptimizer(P.SGD(model.parameters(), lr=1.0, weight_decay=0.0))


def test_constness_can_be_chosen():
    optimizer = P.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    attributes = optimizer.variable_attrs
    assert [attributes.isConstant(n) for n in ("lr", "momentum", "weight_decay")] == [False, False, True]
    attributes.markAsVariable("weight_decay")
    attributes.markAsConstant("momentum")
    assert [attributes.isConstant(n) for n in ("momentum", "weight_decay")] == [True, False]
    with pytest.raises(AssertionError, match="Unknown attribute nonsense"):
        attributes.markAsVariable("nonsense")


def test_another_optimizer_takes_over_the_numbers():
    model = Linear()
    executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    executor(torch.ones(3))
    executor.setOptimizer(torch.optim.SGD(model.parameters(), lr=0.0))
    executor(torch.ones(3))
    assert model.w.tolist() == [w - 1.0 for w in START]


def test_the_state_is_empty_before_compilation_and_names_its_tensors_after():
    model = Linear()
    optimizer = P.AdamW(model.parameters(), lr=0.5, loss_scaling=2.0)
    assert optimizer.state_dict()["ipu_state"] is None
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    executor(torch.tensor(GRADIENTS[0]))
    state = optimizer.state_dict()
    assert set(state["ipu_state"]) == {"Accl1___w", "Accl2___w", "Step___w"}
    assert state["ipu_param"]["learningRate___specific___w"] == 0.5
    assert state["ipu_param"]["lossScaling_FLOAT"] == 2.0
    torch.testing.assert_close(state["ipu_state"]["Accl1___w"], 0.1 * torch.tensor(GRADIENTS[0]))


def test_a_plain_sgd_has_the_scaled_rate_and_no_state():
    model = Linear()
    optimizer = P.SGD(model.parameters(), lr=0.5, weight_decay=0.1, loss_scaling=2.0)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    executor.compile(torch.ones(3))
    state = optimizer.state_dict()
    assert state["ipu_state"] == {}
    assert state["ipu_param"]["scaledLearningRate0___specific___w"] == 0.25
    assert state["ipu_param"]["weightDecayScaleFactor0___specific___w"].item() == pytest.approx(0.95)


def test_a_variable_dampening_without_momentum_makes_its_numbers_variable():
    model = Linear()
    optimizer = P.SGD(model.parameters(), lr=0.5, dampening=0.5)
    optimizer.variable_attrs.markAsConstant("lr")
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    executor(torch.ones(3))
    assert set(optimizer.state_dict()["ipu_param"]) == {
        "scaledLearningRate0___specific___w",
        "weightDecayScaleFactor0___specific___w",
    }
    optimizer.param_groups[0]["dampening"] = 0.0
    executor.setOptimizer(optimizer)
    executor(torch.ones(3))
    assert model.w.tolist() == [w - 0.75 for w in START]


def test_the_rate_on_the_device_takes_the_mean_over_accumulation_and_replicas():
    options = poptorch.Options().replicationFactor(2)
    options.Training.gradientAccumulation(4)
    model = Linear()
    optimizer = P.SGD(model.parameters(), lr=0.5, loss_scaling=2.0, dampening=0.5)
    executor = poptorch.trainingModel(model, options, optimizer)
    executor.compile(torch.ones(8, 3))
    rate = optimizer.state_dict()["ipu_param"]["scaledLearningRate0___specific___w"]
    assert rate.item() == 0.5 * (1 - 0.5) / (2 * 4 * 2)


@pytest.mark.parametrize("make", [lambda p: P.SGD(p, lr=0.1, momentum=0.9), lambda p: P.Adam(p, lr=0.1)])
def test_training_goes_on_from_a_saved_state_as_if_it_had_not_stopped(make):
    whole = train(make)
    model = Linear()
    optimizer = make(model.parameters())
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    executor(torch.tensor(GRADIENTS[0]))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file)
    model = Linear()
    model.load_state_dict(saved["model"])
    optimizer = make(model.parameters())
    optimizer.load_state_dict(saved["optimizer"])
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    for gradient in GRADIENTS[1:]:
        executor(torch.tensor(gradient))
    assert torch.equal(model.w, whole[-1])


def test_a_state_of_torchs_optimizer_is_refused():
    weight = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(RuntimeError, match="Only IPU optimizer states can be loaded onto the IPU"):
        P.Adam([weight]).load_state_dict(torch.optim.Adam([weight]).state_dict())


def test_attributes_that_appear_later_give_one_warning(capfd):
    model = Linear()
    optimizer = P.SGD(model.parameters(), lr=1.0)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    optimizer.param_groups[0]["initial_lr"] = 1.0
    executor.setOptimizer(optimizer)
    assert "Ignoring unexpected group 0 attribute" in capfd.readouterr().err
    executor.setOptimizer(optimizer)
    assert capfd.readouterr().err == ""


def test_subclasses_and_amsgrad_and_strangers():
    weights = [torch.nn.Parameter(torch.zeros(1))]
    for optimizer, error in [
        (torch.optim.Adam(weights, amsgrad=True), ValueError),
        (torch.optim.Adagrad(weights), AssertionError),
    ]:
        with pytest.raises(error):
            poptorch.trainingModel(Linear(), optimizer=optimizer)


def test_a_subclass_is_warned_of(capfd):
    class Own(P.SGD):
        pass

    model = Linear()
    poptorch.trainingModel(model, optimizer=Own(model.parameters(), lr=1.0))
    assert "Poptorch does not run Python optimizer code directly" in capfd.readouterr().err


def test_torchs_own_adamw_is_no_subclass_and_no_adam(capfd):
    model = Linear()
    poptorch.trainingModel(model, optimizer=torch.optim.AdamW(model.parameters()))
    assert capfd.readouterr().err == ""


def test_without_an_optimizer_it_is_sgd_with_lr_0_01():
    model = Linear()
    executor = poptorch.trainingModel(model)
    executor(torch.ones(3))
    assert model.w.tolist() == pytest.approx([w - 0.01 for w in START])


def test_float16_accumulators_cannot_come_after_compilation():
    model = Linear()
    optimizer: Any = P.Adam(model.parameters(), lr=0.5)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    executor.compile(torch.ones(3))
    optimizer.accum_type = torch.float16
    with pytest.raises(ValueError, match="is already compiled"):
        executor.setOptimizer(optimizer)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop", "LAMB"])
def test_optimizers_survive_a_deep_copy(name):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = getattr(P, name)([weight], lr=0.5, loss_scaling=3.0)
    duplicate = copy.deepcopy(optimizer)
    assert duplicate.loss_scaling == 3.0
    assert duplicate.param_groups[0]["lr"] == 0.5
    assert not duplicate.variable_attrs.isConstant("loss_scaling")


def test_lamb_also_steps_on_the_host():
    weight = torch.nn.Parameter(torch.tensor(START))
    optimizer = P.LAMB([weight], lr=0.1, weight_decay=0.3)
    device = train(lambda p: P.LAMB(p, lr=0.1, weight_decay=0.3))
    for gradient, expected in zip(GRADIENTS, device):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected)
