"""Several micro steps as one large operation: only where it gives the same."""

import poptorch
import pytest
import torch
import torch.nn.functional as F


class Network(torch.nn.Module):
    def __init__(self, *extra):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(2, 4, 3, padding=1),
            torch.nn.GroupNorm(2, 4),
            torch.nn.ReLU(),
            *extra,
            torch.nn.Flatten(),
            torch.nn.Linear(64, 3),
        )

    def forward(self, x, y):
        z = self.body(x)
        return z, F.cross_entropy(z, y), (z.argmax(1) == y).sum()


class FilledConstant(torch.nn.Module):
    """An assignment that vmap cannot map: a tensor that is the same in all steps would become different ones."""

    def forward(self, x):
        return torch.zeros(x.shape).copy_(x)


class OwnFunction(torch.nn.Module):
    """Differentiated by the operations in its forward(), which vmap knows."""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, gradient):
            raise AssertionError("the device never calls it")

    def forward(self, x):
        return self.Square.apply(x)


def trained(model, fold, accum_type=torch.float32):
    options = poptorch.Options().replicationFactor(2).deviceIterations(2).outputMode(poptorch.OutputMode.All)
    options.Training.gradientAccumulation(3)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, accum_type=accum_type)
    executor = poptorch.trainingModel(model, options, optimizer)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 2, 4, 4, generator=generator), torch.randint(0, 3, (24,), generator=generator)
    executor.compile(x, y)
    if not fold:
        executor._program._folding.reject("the test says so")
    outputs = [executor(x, y) for _ in range(3)]
    return executor._program._folding, outputs, model.state_dict()


@pytest.mark.parametrize("layer", [torch.nn.ReLU, OwnFunction])
def test_folded_steps_give_the_outputs_losses_and_weights_of_single_ones(layer):
    folding, folded, weights = trained(Network(layer()), fold=True)
    assert folding._is_allowed and folding._is_verified
    _, single, expected = trained(Network(layer()), fold=False)
    for ours, reference in zip(folded, single):
        for value, correct in zip(ours, reference):
            assert value.dtype == correct.dtype
            torch.testing.assert_close(value, correct, rtol=1e-4, atol=1e-5)  # sums in another order, six updates on
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)


class OwnBatchNorm(torch.nn.Module):
    """No counter of batches: only the operation itself tells that buffers change."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.var, training=True, momentum=0.5)


STATEFUL = [torch.nn.BatchNorm2d(4), OwnBatchNorm(), torch.nn.Dropout(0.5), FilledConstant()]


@pytest.mark.parametrize("layer", STATEFUL, ids=lambda layer: type(layer).__name__)
def test_what_depends_on_the_step_or_cannot_be_mapped_runs_step_by_step(layer):
    model = Network(layer)
    folding, outputs, _ = trained(model, fold=True)
    assert not folding._is_allowed
    assert outputs[0][1].shape == (12,)


def test_half_accumulators_run_step_by_step():
    folding, *_ = trained(Network(), fold=True, accum_type=torch.float16)
    assert not folding._is_allowed


def test_a_model_that_mixes_micro_batches_when_folded_is_found_out():
    class Mixing(torch.nn.Module):
        """vmap cannot see what the host counts."""

        def __init__(self):
            super().__init__()
            self.calls = 0
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, y):
            self.calls += 1
            return poptorch.identity_loss(self.weight * x.mean() * self.calls, "sum")

    folding, outputs, _ = trained(Mixing(), fold=True)
    assert not folding._is_allowed
    assert outputs[0].shape == (12,)


def test_inference_folds_over_device_iterations():
    model = Network().eval()
    executor = poptorch.inferenceModel(model, poptorch.Options().deviceIterations(5))
    x, y = torch.randn(10, 2, 4, 4), torch.randint(0, 3, (10,))
    for _ in range(2):
        z, losses, correct = executor(x, y)
    assert executor._program._folding._is_verified
    torch.testing.assert_close(z, model(x, y)[0].detach(), rtol=1e-4, atol=1e-5)
    assert losses.shape == correct.shape == (5,)


class Norms(torch.nn.Module):
    """Every norm that is folded to one call, and the same row by row."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        norms = [torch.nn.GroupNorm(2, 4), torch.nn.LayerNorm([4, 3]), torch.nn.BatchNorm1d(4, eps=0.3, momentum=0.5)]
        norms += [torch.nn.InstanceNorm1d(4, affine=True, track_running_stats=True)]
        self.norms = torch.nn.ModuleList(norms)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter)
        self.norms[2].running_mean.normal_()
        self.to(dtype)

    def forward(self, x, y):
        for norm in self.norms:
            x = norm(x)
        return x, F.mse_loss(x, y)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_folded_norms_are_those_of_single_steps(strided, dtype):
    found = []
    for fold in (True, False):
        model = Norms(dtype)
        model.norms[2].eval()
        options = poptorch.Options().replicationFactor(2).outputMode(poptorch.OutputMode.All)
        options._Popart.set("groupNormStridedChannelGrouping", strided)
        options.Training.gradientAccumulation(3)
        executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=0.1))
        rows = torch.linspace(-1, 1, 12 * 4 * 3).reshape(12, 4, 3).to(dtype)
        executor.compile(rows, rows)
        if not fold:
            executor._program._folding.reject("the test says so")
        outputs, loss = executor(rows, rows * 2)
        outputs, loss = executor(rows, rows * 2)  # the first call is that which compares
        assert executor._program._folding._is_allowed == fold
        found.append([outputs, loss, *(p.detach().clone() for p in model.parameters())])
    tolerance = 1e-5 if dtype == torch.float32 else 4e-3  # a few roundings
    for folded, single in zip(*found):
        torch.testing.assert_close(folded, single, rtol=tolerance, atol=tolerance)


def test_a_folded_norm_is_one_operation(monkeypatch):
    calls = []
    original = torch.group_norm  # what F.group_norm calls
    monkeypatch.setattr(torch, "group_norm", lambda x, *rest: calls.append(len(x)) or original(x, *rest))
    model = Network()
    options = poptorch.Options().deviceIterations(6)
    executor = poptorch.inferenceModel(model, options)
    rows, labels = torch.randn(12, 2, 4, 4), torch.zeros(12, dtype=torch.int64)
    executor(rows, labels)
    calls.clear()
    executor(rows, labels)
    assert calls == [12]
