"""Operators of each kind that PopTorch has a handler for: their values against torch in float64, and their types."""

import poptorch
import pytest
import torch
import torch.nn.functional as F

INDEX = torch.tensor([[0, 2, 1], [3, 3, 0]])
ROWS = torch.tensor([2, 0])


class Call(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.register_buffer("index", INDEX.float())  # an integer buffer would be a constant of the graph

    def forward(self, x):
        return self.function(x, self.index.long())


FUNCTIONS = {  # of x (2, 4, 6, 6) and an index (2, 3) below 4
    # activations
    "leaky relu, elu, celu": lambda x, i: F.leaky_relu(x, 0.2) + F.elu(x, 2.0) + F.celu(x, 0.5),
    "selu, softplus, mish": lambda x, i: F.selu(x) + F.softplus(x, 2.0, 1.0) + F.mish(x),
    "hard ones": lambda x, i: F.hardtanh(x, -0.3, 0.2) + F.hardsigmoid(x) + F.hardswish(x) + F.hardshrink(x, 0.1),
    "shrinks, threshold": lambda x, i: F.softshrink(x, 0.1) + F.tanhshrink(x) + F.threshold(x, 0.2, -1.0),
    "rrelu in evaluation": lambda x, i: F.rrelu(x, 0.1, 0.3, training=False),
    "glu, softmin, prelu": lambda x, i: F.glu(x, 1) + F.softmin(x, 1)[:, :2] + F.prelu(x, x[0, :, 0, 0])[:, 2:],
    # reductions
    "amax of two, amin": lambda x, i: x.amax((1, 3)) + x.amin(dim=(2, 1)),
    "logsumexp, prod": lambda x, i: x.logsumexp((2, 3)) + x.prod(1).sum(-1)[:, :4],
    "std and mean": lambda x, i: torch.stack(torch.std_mean(x, (0, 2), unbiased=False)),
    "nansum": lambda x, i: torch.where(x > 0, x, torch.full_like(x, float("nan"))).nansum((2, 3)),
    "median": lambda x, i: x.flatten()[:9].median() + x.median(1)[0].sum(),
    "any, all": lambda x, i: (x > 0).any(1).float() + (x > -9).all(1).float(),
    "norms of odd order": lambda x, i: x.norm(3, 1) + torch.linalg.vector_norm(x, -1.5, 1) + x.norm(float("-inf"), 1),
    # positions
    "argmax, argmin": lambda x, i: (x.argmax(1), x.flatten().argmin(), x.argmax(-1, keepdim=True)),
    "sorting": lambda x, i: (*x.sort(1), *x.sort(-1, descending=True), x.argsort(2)),
    "topk": lambda x, i: (*x.topk(2, 1), *x.topk(3, largest=False)),
    "bucketize": lambda x, i: torch.bucketize(x, torch.tensor([-0.5, 0.0, 0.5], dtype=x.dtype), right=True),
    "counts": lambda x, i: torch.bincount(i.flatten(), minlength=4),
    # indexing
    "gather": lambda x, i: x[:, :, 0, 0].gather(1, i) + x[0].gather(0, i[..., None].expand(-1, -1, 1))[..., 0],
    "take_along_dim": lambda x, i: torch.take_along_dim(x[:, :, 0, 0], i, 1),
    "index_select, advanced": lambda x, i: x.index_select(1, i[0]) + x[:, i[1]],
    "two index tensors": lambda x, i: x[i[0] % 2, i[1], 1:4].sum(1),
    "one_hot": lambda x, i: F.one_hot(i, 5),
    "embedding": lambda x, i: F.embedding(i, x[0, 0, :4]) + F.embedding(i, x[0, 1, :4], padding_idx=1),
    "scatter": lambda x, i: torch.zeros_like(x[:, :, 0, 0]).scatter(1, i[:, :1], x[:, :1, 1, 1]),
    "scatter of a number": lambda x, i: x[:, :, 0, 0].scatter(1, i, 3.0),
    "scatter_add": lambda x, i: x[:, :, 0, 0].scatter_add(1, i, x[:, :3, 1, 1]),
    "scatter_reduce": lambda x, i: sum(
        x[:, :, 0, 0].scatter_reduce(1, i, x[:, :3, 1, 1], kind, include_self=own)
        for kind in ("amax", "amin", "mean", "prod", "sum")
        for own in (False, True)
    ),
    "index_reduce": lambda x, i: x.index_reduce(1, i[0], x[:, :3], "amax"),
    "index_fill, masked_fill": lambda x, i: x.index_fill(1, i[0], 2.0).masked_fill(x > 0.5, -1.0),
    "assignment": lambda x, i: _assigned(x.clone()),
    # shapes
    "repeat, tile, flip, roll": lambda x, i: x.repeat(1, 2, 1, 1).flip(1).roll((1, -2), (0, 3)).tile(2),
    "roll of all": lambda x, i: x.roll(5),
    "chunks of 4 in 3": lambda x, i: torch.cat([part.sum(1, keepdim=True) for part in x.chunk(3, 1)], 1),
    "unfolding": lambda x, i: x.unfold(2, 3, 2).sum(-1),
    "im2col and back": lambda x, i: F.fold(F.unfold(x, 3, 1, 1, 2), (6, 6), 3, 1, 1, 2),
    "pixel shuffle": lambda x, i: F.pixel_shuffle(x, 2),
    "meshgrid": lambda x, i: torch.stack(torch.meshgrid(x[0, 0, 0], x[0, 1, 0], indexing="ij")),
    "constant padding, negative too": lambda x, i: F.pad(x, (-1, 2, 3, 0, 1, 1), value=0.5),
    "reflected and replicated": lambda x, i: (
        F.pad(x, (1, 2, 3, 0), mode="reflect") + F.pad(x, (1, 2, 3, 0), mode="replicate")
    ),
    "views with strides": lambda x, i: x.transpose(1, 3)[:, 1::2].permute(3, 1, 0, 2)[..., ::3] * 2,
    # linear algebra
    "einsum": lambda x, i: torch.einsum("bchw,bdhw->cd", x, x) + torch.einsum("bc...,kc...->c", x, x),
    "tensordot": lambda x, i: torch.tensordot(x, x, ((1, 2), (1, 2))),
    "addmm, baddbmm": lambda x, i: (
        torch.addmm(x[0, 0], x[0, 1], x[1, 0], beta=2, alpha=0.5)
        + torch.baddbmm(x[0], x[1], x[0], beta=0.5, alpha=2).sum(0)
    ),
    "bilinear": lambda x, i: F.bilinear(x[0, 0], x[0, 1], x[1], x[1, 0, 0, :4]),
    "distances": lambda x, i: torch.cdist(x, x, 1.0) + F.pairwise_distance(x, x.flip(0), 3.0)[..., None],
    "cross": lambda x, i: torch.cross(x[:, :3], x[:, 1:], dim=1),
    "cumsum, cumprod": lambda x, i: x.cumsum(1) + x.cumprod(-1),
    # pools, convolutions, upsampling
    "pools that round up": lambda x, i: F.max_pool2d(x, 3, 2, ceil_mode=True) + F.avg_pool2d(x, 3, 2, 1),
    "averages without padding": lambda x, i: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "Lp pool": lambda x, i: F.lp_pool2d(x.abs(), 2.0, 2),
    "grouped convolutions": lambda x, i: F.conv2d(x, x[:, :2, :3, :3].repeat(2, 1, 1, 1), None, 2, 2, 2, 2),
    "transposed convolution": lambda x, i: F.conv_transpose2d(x, x[:1, :, :3, :3].transpose(0, 1), None, 2, 1, 1),
    "nearest": lambda x, i: F.interpolate(x, scale_factor=2) + F.interpolate(x, size=(12, 12)),
    "bilinear upsampling": lambda x, i: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
    "bicubic upsampling": lambda x, i: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    # norms
    "norms without affine": lambda x, i: F.layer_norm(x, (6, 6)) + F.group_norm(x, 2) + F.instance_norm(x, eps=0.1),
    # arithmetic
    "remainders": lambda x, i: x.remainder(0.3) + x.fmod(-0.3) + (x // 0.3) + x.frac() + x.trunc() + (x * 10).round(),
    "addcmul, addcdiv": lambda x, i: x.addcmul(x, x, value=0.5).addcdiv(x, x.abs() + 1, value=2),
    "clamps": lambda x, i: x.clamp(-0.1, 0.2) + x.clamp_min(0.1) + x.clamp(max=x.flip(1)),
    "integer arithmetic": lambda x, i: (i * 3 - 1, i // 2, i % 3, i & 3, i | 4, i ^ 1, ~i, i.float() / 2),
    "bool arithmetic": lambda x, i: ((x > 0) & ~(x > 0.5), (x > 0) ^ (x < 0.2), (x > 0) + (x < -0.5), (x > 0).sum(1)),
    "cosine similarity": lambda x, i: F.cosine_similarity(x, x.flip(1), dim=2),
}


def _assigned(x):
    x[:, 1] = 3.0
    x[0, :2] += 1
    x[x > 2] = 0.5
    x[:, 2:, 1:3].mul_(2)
    return x


def values_and_types(outputs):
    found = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    return [(tensor.double(), tensor.dtype) for tensor in found]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operators_compute_what_torch_does_in_the_devices_types(name):
    x = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ours = values_and_types(poptorch.inferenceModel(Call(FUNCTIONS[name]))(x))
    expected = values_and_types(FUNCTIONS[name](x.double(), INDEX))
    on_device = {torch.float64: torch.float32, torch.int64: torch.int32}
    for (value, dtype), (right, right_dtype) in zip(ours, expected):
        assert dtype == on_device.get(right_dtype, right_dtype)
        torch.testing.assert_close(value, right, rtol=2e-5, atol=2e-5)  # float32, over at most a few hundred terms
    assert len(ours) == len(expected)


RANDOM = {  # with the mean and standard deviation of what they draw
    "rand": (lambda x: torch.rand(x.shape), 0.5, 12**-0.5),
    "randn_like": (torch.randn_like, 0.0, 1.0),
    "normal": (lambda x: torch.normal(x * 0 + 3.0, 0.5), 3.0, 0.5),
    "bernoulli": (lambda x: torch.bernoulli(x * 0 + 0.3), 0.3, 0.21**0.5),
    "exponential_": (lambda x: torch.empty_like(x).exponential_(2.0), 0.5, 0.5),
    "uniform_": (lambda x: torch.empty_like(x).uniform_(-2.0, 4.0), 1.0, 3**0.5),
    "randint": (lambda x: torch.randint(0, 4, x.shape).float(), 1.5, 1.25**0.5),
    "randperm": (lambda x: torch.randperm(4000).float(), 1999.5, ((4000**2 - 1) / 12) ** 0.5),
    "dropout": (lambda x: F.dropout(torch.ones_like(x), 0.25), 1.0, 3**-0.5),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_operators_draw_anew_from_their_distribution(name):
    function, mean, deviation = RANDOM[name]
    model = poptorch.inferenceModel(Call(lambda x, i: function(x)), poptorch.Options().randomSeed(3))
    first, second = model(torch.zeros(4000)), model(torch.zeros(4000))
    assert not torch.equal(first, second)
    assert abs(float(first.mean()) - mean) < 6 * deviation / 4000**0.5  # six standard errors
    assert abs(float(first.std()) - deviation) < 0.1 * deviation
