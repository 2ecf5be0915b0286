"""Buffers and normalization under accumulation and replication."""

import poptorch
import pytest
import torch


class Normalized(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, x):
        y = self.norm(x)
        return y, poptorch.identity_loss(y**2, "mean")


def batch(rows):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows))


def test_batch_norm_sees_micro_batches_and_keeps_replica_0s_statistics():
    replicas, accumulation, rows = 2, 3, 4
    x = batch(replicas * accumulation * rows)
    model, expected = Normalized(), Normalized()
    options = poptorch.Options().replicationFactor(replicas).outputMode(poptorch.OutputMode.All)
    options.Training.gradientAccumulation(accumulation)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.0))
    y, _ = executor(x)
    micro = x.split(rows)
    for step, part in enumerate(micro):
        torch.testing.assert_close(y[step * rows : (step + 1) * rows], Normalized()(part)[0].detach())
    for part in micro[::replicas]:  # what replica 0 saw
        expected(part)
    torch.testing.assert_close(model.norm.running_mean, expected.norm.running_mean)
    torch.testing.assert_close(model.norm.running_var, expected.norm.running_var)  # unbiased, as in torch
    assert model.norm.num_batches_tracked == accumulation


def test_running_statistics_without_a_counter_are_updated_once_by_each_micro_step():
    class OwnNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(1))
            self.register_buffer("var", torch.ones(1))

        def forward(self, x):
            y = torch.nn.functional.batch_norm(x, self.mean, self.var, training=True, momentum=0.5)
            return poptorch.identity_loss(y, "mean")

    model = OwnNorm()
    options = poptorch.Options().outputMode(poptorch.OutputMode.All)
    options.Training.gradientAccumulation(3)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1))
    executor(torch.tensor([[0.0], [2.0]] * 3))  # three micro batches of mean 1 and unbiased variance 2
    assert (model.mean.item(), model.var.item()) == (1 - 0.5**3, 2 - 0.5**3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_inference_in_training_mode_normalizes_by_the_batch_and_leaves_the_running_statistics(dtype):
    model = Normalized()
    model.norm.running_mean.add_(5.0)
    x = batch(8).to(dtype)
    model.norm.weight.data, model.norm.bias.data = model.norm.weight.to(dtype), model.norm.bias.to(dtype)
    y, _ = poptorch.inferenceModel(model, poptorch.Options().deviceIterations(2))(x)
    expected = [(part - part.mean(0)) / part.std(0, unbiased=False) for part in x.float().split(4)]
    torch.testing.assert_close(y.float(), torch.cat(expected), rtol=1e-2, atol=1e-2)  # float16 has 11 bits
    assert model.norm.running_mean.tolist() == [5.0] * 3
    assert model.norm.running_var.tolist() == [1.0] * 3


@pytest.mark.parametrize("mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("make", [poptorch.trainingModel, poptorch.inferenceModel])
def test_instance_norm_normalizes_by_its_input_and_leaves_running_statistics_alone(make, mode):
    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.InstanceNorm1d(3, eps=0.5, affine=True, track_running_stats=True)
            self.norm.running_mean.add_(5.0)

        def forward(self, x):
            y = self.norm(x)
            return y, poptorch.identity_loss(y.mean(), "none")

    x = torch.linspace(-1, 2, 4 * 3 * 2).reshape(4, 3, 2) ** 2
    model = Network().train(mode)
    executor = make(model)
    y, _ = executor(x)
    expected = (x - x.mean(2, keepdim=True)) / (x.var(2, unbiased=False, keepdim=True) + 0.5).sqrt()
    torch.testing.assert_close(y, expected)
    assert model.norm.running_mean.tolist() == [5.0] * 3
    assert model.norm.running_var.tolist() == [1.0] * 3


def test_a_running_mean_without_a_variance_is_refused():
    class Half(torch.nn.Module):
        def forward(self, x):
            return torch.nn.functional.batch_norm(x, torch.zeros(3), None, training=True)

    with pytest.raises(poptorch.Error, match=r"batch_norm has a running_mean and no running_var: .* pass ones"):
        poptorch.inferenceModel(Half())(torch.randn(4, 3))


NORMS = {
    "batch_norm": lambda x, **given: torch.nn.functional.batch_norm(x, None, None, training=True, **given),
    "group_norm": lambda x, **given: torch.nn.functional.group_norm(x, 1, **given),
    "instance_norm": torch.nn.functional.instance_norm,
    "layer_norm": lambda x, **given: torch.nn.functional.layer_norm(x, (3,), **given),
}


@pytest.mark.parametrize("given", ["weight", "bias"])
@pytest.mark.parametrize("name", NORMS)
def test_a_norm_with_only_one_of_weight_and_bias_is_refused(name, given):
    class OneParameter(torch.nn.Module):
        def forward(self, x):
            return NORMS[name](x, **{given: torch.ones(3)})

    with pytest.raises(poptorch.Error, match=f"{name} has a {given} and no .* both or neither"):
        poptorch.inferenceModel(OneParameter())(torch.randn(4, 3, 3))


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x):
        self.count += x.sum()
        return self.count


def test_a_buffer_updated_in_place_needs_leave_to_differ_between_replicas():
    options = poptorch.Options().replicationFactor(2)
    with pytest.raises(poptorch.Error, match="PopTorch does not support broadcasting buffers"):
        poptorch.inferenceModel(Counting(), options)(torch.ones(2))
    executor = poptorch.inferenceModel(Counting(), options.clone().broadcastBuffers(False))
    for calls in (1, 2):
        assert executor(torch.tensor([1.0, 10.0])).tolist() == [calls, 10.0 * calls]


def test_a_norms_running_statistics_may_be_updated_without_leave_but_not_other_buffers_of_it():
    class OwnNorm(torch.nn.Module):
        def __init__(self, counts):
            super().__init__()
            self.counts = counts
            self.register_buffer("mean", torch.zeros(3))
            self.register_buffer("var", torch.ones(3))

        def forward(self, x):
            if self.counts:
                self.mean.add_(1)
            return torch.nn.functional.batch_norm(x, self.mean, self.var, training=True)

    options = poptorch.Options().replicationFactor(2)
    poptorch.inferenceModel(OwnNorm(counts=False), options)(batch(4))
    with pytest.raises(poptorch.Error, match="broadcasting buffers"):
        poptorch.inferenceModel(OwnNorm(counts=True), options)(batch(4))


def test_compiling_leaves_buffers_alone():
    model = Counting()
    executor = poptorch.inferenceModel(model)
    executor.compile(torch.ones(1))
    assert executor(torch.ones(1)) == 1


def test_a_buffer_of_an_inference_model_comes_back_when_it_is_asked_for():
    model = Counting()
    executor = poptorch.inferenceModel(model)
    executor(torch.ones(1))
    assert model.count == 0
    executor.copyWeightsToHost()
    assert model.count == 1


def replace(self, x):
    self.count = self.count + x


def remove(self, x):
    del self._buffers["count"]


@pytest.mark.parametrize("forward, what", [(replace, "reassigned within"), (remove, "removed from")])
def test_a_buffer_must_stay_the_same_tensor(forward, what):
    model = type("Broken", (Counting,), {"forward": forward})()
    with pytest.raises(poptorch.Error, match=f"Buffer count is {what} the model"):
        poptorch.inferenceModel(model)(torch.ones(1))
    assert model.count == 0


def test_named_buffers_are_sent_alone():
    model = Counting()
    executor = poptorch.inferenceModel(model, poptorch.Options().updatableNamedBuffers(["count"]))
    executor(torch.ones(1))
    model.count.fill_(10.0)
    executor.copyNamedBuffersToDevice()
    assert executor(torch.ones(1)) == 11
    with pytest.raises(poptorch.Error, match="updatableNamedBuffers"):
        poptorch.inferenceModel(model, poptorch.Options().updatableNamedBuffers(["other"]))(torch.ones(1))


@pytest.mark.parametrize("channels, groups", [(6, 2), (6, 3), (6, 6), (6, 1)])
def test_strided_group_norm_takes_every_num_groups_th_channel(channels, groups):
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(groups, channels)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, channels, 3, 2)
    options = poptorch.Options()
    options._Popart.set("groupNormStridedChannelGrouping", True)
    expected = torch.empty_like(x)
    for group in range(groups):
        members = [c for c in range(channels) if c % groups == group]
        if groups in (1, channels):  # no effect at the ends: there both groupings are the same
            members = list(range(channels)) if groups == 1 else [group]
        part = x[:, members]
        mean = part.mean(dim=(1, 2, 3), keepdim=True)
        var = part.var(dim=(1, 2, 3), keepdim=True, unbiased=False)
        scale, shift = (p[members].detach().reshape(1, -1, 1, 1) for p in (norm.weight, norm.bias))
        expected[:, members] = (part - mean) / (var + norm.eps).sqrt() * scale + shift
    torch.testing.assert_close(poptorch.inferenceModel(norm, options)(x), expected)
    torch.testing.assert_close(poptorch.inferenceModel(norm)(x), norm(x).detach())


def test_a_gradient_flows_through_a_buffer_within_a_micro_step_and_not_into_an_earlier_one():
    class Sum(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("sum", torch.zeros(1))
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            self.sum += self.weight * x
            return poptorch.identity_loss(self.sum * self.weight, "sum")

    model = Sum()
    executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    losses = [executor(torch.ones(1)).item() for _ in range(3)]
    # gradient: sum + weight. sum 1, 1.8, 2.34; weight 1, 0.8, 0.54, 0.252
    assert losses == pytest.approx([1, 1.44, 1.2636])
    assert [model.sum.item(), model.weight.item()] == pytest.approx([2.34, 0.252])
