"""A training call: the order of updates, and how gradients are combined."""

import poptorch
import pytest
import torch

D, A, R, B = 2, 3, 2, 4  # device iterations, accumulation, replicas, micro batch
RATE = 0.1


class Regression(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = torch.nn.Linear(5, 2)

    def forward(self, x, y):
        return poptorch.identity_loss((self.layer(x) - y) ** 2, reduction="mean")


def data(rows=D * A * R * B):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 5, generator=generator), torch.randn(rows, 2, generator=generator)


def options(reduction=poptorch.ReductionType.Mean):
    chosen = poptorch.Options().deviceIterations(D).replicationFactor(R)
    chosen.Training.gradientAccumulation(A).accumulationAndReplicationReductionType(reduction)
    return chosen


def reference(factor):
    """float64, micro batch by micro batch: gradients summed times `factor`, one step per device iteration."""
    model = Regression().double()
    x, y = (tensor.double().reshape(D, A * R, B, -1) for tensor in data())
    for iteration in range(D):
        model.zero_grad()
        for step in range(A * R):
            ((model.layer(x[iteration, step]) - y[iteration, step]) ** 2).mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(RATE * factor * parameter.grad)
    return model.layer.weight


@pytest.mark.parametrize("kind, factor", [("Mean", 1 / (A * R)), ("Sum", 1.0)])
def test_gradients_are_averaged_or_summed_and_weights_change_once_per_device_iteration(kind, factor):
    model = Regression()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    executor = poptorch.trainingModel(model, options(getattr(poptorch.ReductionType, kind)), optimizer)
    executor(*data())
    # float32 against float64 over 6 micro batches: a few units in the last of 24 bits
    torch.testing.assert_close(model.layer.weight.double(), reference(factor), rtol=1e-5, atol=1e-6)


def test_losses_come_back_as_forward_computed_them():
    model = Regression()
    x, y = data(A * R * B)
    chosen = poptorch.Options().replicationFactor(R).outputMode(poptorch.OutputMode.All)
    chosen.Training.gradientAccumulation(A)
    expected = [((model.layer(a) - b) ** 2).mean().item() for a, b in zip(x.split(B), y.split(B))]
    optimizer = poptorch.optim.SGD(model.parameters(), lr=RATE, loss_scaling=8.0)
    losses = poptorch.trainingModel(model, chosen, optimizer)(x, y)
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)


def test_float16_accumulators_force_the_running_mean():
    model = Regression()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=RATE, accum_type=torch.float16)
    executor = poptorch.trainingModel(model, options(), optimizer)
    strategy = executor.options.Training.meanAccumulationAndReplicationReductionStrategy
    assert strategy == poptorch.MeanReductionStrategy.Running


def test_float16_accumulators_round_every_sum():
    class OneWeight(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return poptorch.identity_loss(self.weight * x, reduction="sum")

    # gradients 2048, 1, 1 as sums in half: 2048 + 1 rounds to 2048, twice
    model = OneWeight()
    chosen = poptorch.Options()
    chosen.Training.gradientAccumulation(3).accumulationAndReplicationReductionType(poptorch.ReductionType.Sum)
    optimizer = poptorch.optim.SGD(
        model.parameters(), lr=1.0, momentum=0.0, accum_type=torch.float16, use_combined_accum=True
    )
    executor = poptorch.trainingModel(model, chosen, optimizer)
    executor(torch.tensor([2048.0, 1.0, 1.0]))
    assert model.weight.item() == -2048.0


def test_loss_scaling_cancels_out():
    weights = []
    for scale in (1.0, 16.0):  # powers of two: no rounding
        model = Regression()
        optimizer = poptorch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, loss_scaling=scale)
        executor = poptorch.trainingModel(model, options(), optimizer)
        executor(*data())
        executor(*data())
        weights.append(model.layer.weight.detach().clone())
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-7)


def test_frozen_parameters_stay():
    model = Regression()
    model.layer.bias.requires_grad_(False)
    before = model.layer.bias.clone()
    weight = model.layer.weight.detach().clone()
    executor = poptorch.trainingModel(model, options(), torch.optim.SGD(model.parameters(), lr=RATE))
    executor(*data())
    assert torch.equal(model.layer.bias, before)
    assert not torch.equal(model.layer.weight, weight)


def test_parameters_outside_the_optimizer_get_its_defaults_with_a_warning(capfd):
    model = Regression()
    before = model.layer.bias.detach().clone()
    optimizer = torch.optim.SGD([model.layer.weight], lr=RATE)
    executor = poptorch.trainingModel(model, options(), optimizer)
    executor(*data())
    assert not torch.equal(model.layer.bias, before)
    assert "layer.bias" in capfd.readouterr().err


def test_backward_on_an_output_says_that_it_is_done_already():
    loss = poptorch.trainingModel(Regression())(*data(B))
    with pytest.raises(poptorch.Error, match=r"backward\(\) cannot be called explicitly"):
        loss.backward()


def test_an_overflow_is_an_error_where_exceptions_are_on():
    chosen = poptorch.Options()
    chosen.Precision.enableFloatingPointExceptions(True)
    with pytest.raises(poptorch.Error, match="Floating point exception"):
        poptorch.trainingModel(Regression(), chosen)(torch.full((B, 5), 1e30), torch.zeros(B, 2))


def test_per_replica_weights_learn_from_their_own_replicas():
    class OwnWeight(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(2, 1))

        def forward(self, x):
            return poptorch.identity_loss(self.weight * x, reduction="sum")

    model = OwnWeight()
    executor = poptorch.trainingModel(
        model, poptorch.Options().replicationFactor(2), torch.optim.SGD(model.parameters(), lr=1.0)
    )
    executor.weight.replicaGrouping(poptorch.CommGroupType.NoGrouping, 0, poptorch.VariableRetrievalMode.OnePerGroup)
    executor(torch.tensor([4.0, 6.0]))
    assert model.weight.flatten().tolist() == [-2.0, -3.0]  # each gradient over 2 replicas
