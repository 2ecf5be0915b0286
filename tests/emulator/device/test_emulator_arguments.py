"""Arguments of operators that PopTorch compiles: what its handlers refuse, and what they take otherwise than torch."""

import math

import poptorch
import pytest
import torch
import torch.nn.functional as F


class Call(torch.nn.Module):
    """A module from a function, whose argument depends on a weight; in training its mean is the loss."""

    def __init__(self, function, marks_loss=False):
        super().__init__()
        self.function = function
        self.marks_loss = marks_loss
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        output = self.function(x * self.weight)
        return (output, poptorch.identity_loss(output, "mean")) if self.marks_loss else output


def inferred(function, x):
    return poptorch.inferenceModel(Call(function))(x)


def trained(function, x, marks_loss=True):
    return poptorch.trainingModel(Call(function, marks_loss))(x)


X = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)) + 0.1


def changed_slice(x):
    x = x + 1
    x[:, ::2] = 0.0
    return x


REFUSED = {
    "adaptive pool of 6 to 4": (
        lambda x: F.adaptive_avg_pool2d(x, 4),
        r"Input dim 0 \(6\) is not divisible by .* \(4\)",
    ),
    "adaptive pool of rows": (lambda x: F.adaptive_avg_pool1d(x[0], 4), r"\(6\) is not divisible by .* \(4\)"),
    "interpolation by area": (lambda x: F.interpolate(x, size=5, mode="area"), r"\(6\) is not divisible by .* \(5\)"),
    "dilated maximum pool": (lambda x: F.max_pool2d(x, 2, dilation=2), r"MaxPool has dilations \[2, 2\]"),
    "dilated transposed convolution": (
        lambda x: F.conv_transpose2d(x, torch.ones(4, 2, 3, 3) * x.sum(), dilation=2),
        "Non default value for dilations is not supported",
    ),
    "indices of a pool": (
        lambda x: F.max_pool2d(x, 2, return_indices=True),
        "fewer outputs than the dispatch function",
    ),
    "indices used": (lambda x: F.max_pool1d(x[0], 2, return_indices=True)[1] + 1, "fewer outputs than the dispatch"),
    "sparse embedding": (lambda x: F.embedding(x[0, 0].long(), x[0, 0], sparse=True), "Unsupported aten::embedding op"),
    "bag with padding": (
        lambda x: F.embedding_bag(x[0, 0].long(), x[0, 0], padding_idx=0),
        "embedding_bag operation: padding_idx parameter is unsupported",
    ),
    "bags that begin anywhere": (
        lambda x: F.embedding_bag(x[0, 0, 0].long(), x[0, 0], x[0, 0, 0, :1].long()),
        "offsets tensor must be a constant",
    ),
    "8 bits, and": (lambda x: x.byte() & x.byte(), "Bitwise-and: Poplar does not support binary operations on 8-bit"),
    "8 bits, not": (lambda x: ~x.to(torch.int8), "Bitwise-not: Poplar does not support binary operations on 8-bit"),
    "broadcast cross": (
        lambda x: torch.cross(x[:, :3], x[:1, :3], dim=1),
        "Cross product tensors must have same shape",
    ),
    "two factors": (lambda x: F.interpolate(x, size=(12, 6), mode="bilinear"), "Non-uniform bilinear upsampling"),
    "factor 1.5": (lambda x: F.interpolate(x, scale_factor=1.5, mode="bilinear"), "non-integer factor not supported"),
    "bicubic corners": (
        lambda x: F.interpolate(x, scale_factor=2, mode="bicubic", align_corners=True),
        "Only support align_corners=False",
    ),
    "triu": (torch.triu, "triu is only supported within constant expressions"),
    "diagonal": (lambda x: x[0, 0].diagonal(), "aten::as_strided should have been intercepted earlier"),
    "diagonal by einsum": (lambda x: torch.einsum("ii->i", x[0, 0]), "aten::as_strided should have been intercepted"),
    "as_strided": (lambda x: x.as_strided((2, 2), (1, 2)), "aten::as_strided should have been intercepted earlier"),
    "unfold of 3 dimensions": (lambda x: F.unfold(x[0], 2), r"data_shape\.size\(\) != 4"),
    "matrix 2-norm": (lambda x: torch.linalg.matrix_norm(x, 2), "Matrix 2-norm is not supported"),
    "2-norm of two dimensions": (lambda x: torch.linalg.norm(x, -2, (2, 3)), "Matrix 2-norm is not supported"),
    "nuclear norm": (lambda x: torch.norm(x[0, 0], "nuc"), "Matrix nuclear norm is not supported"),
    "every second row changed": (changed_slice, "In-place modification of slices with step size other than 1"),
    "in place, every second row": (lambda x: (x + 1)[::2].mul_(2), "In-place modification of slices with step size"),
    "to the host": (lambda x: x.cpu(), "Illegal move to CPU"),
    "to the host by name": (lambda x: x.to("cpu") + 1, "Illegal move to CPU"),
    "losses of CTC": (
        lambda x: F.ctc_loss(x[0].log_softmax(-1), torch.ones(6, 2).long(), [4] * 6, [2] * 6, reduction="none"),
        'CTCLoss with reduction="none" is currently not supported',
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_handler_refuses_is_refused_when_compiling(name):
    function, message = REFUSED[name]
    with pytest.raises(poptorch.Error, match=message):
        inferred(function, X)


@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_padding_by_values_has_no_gradient(mode):
    def padded(x):
        return F.pad(x, (1, 2, 1, 1), mode=mode)

    assert inferred(padded, X).shape == (2, 4, 8, 9)
    with pytest.raises(poptorch.Error, match='PopART does not support PadGradOp when mode is not "constant"'):
        trained(padded, X)


def test_padding_by_values_of_what_needs_no_gradient_trains():
    class PaddedInput(Call):
        def forward(self, x):
            return poptorch.identity_loss((F.pad(x, (1, 1), mode="reflect") * self.weight).sum(), "mean")

    poptorch.trainingModel(PaddedInput(None))(X[0])


COMPILED = {  # beside the refused ones
    "adaptive pool": (lambda x: F.adaptive_avg_pool2d(x, (3, 2)), (2, 4, 3, 2)),
    "pool without its indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], (2, 4, 3, 3)),
    "pool that rounds up": (lambda x: F.max_pool2d(x, 4, 3, ceil_mode=True), (2, 4, 2, 2)),
    "transposed convolution": (
        lambda x: F.conv_transpose2d(x, torch.ones(4, 2, 3, 3) * x.sum(), None, 2, groups=2, output_padding=1),
        (2, 4, 14, 14),
    ),
    "bag": (lambda x: F.embedding_bag(x[0, 0].long(), x[0, 0]), (6, 6)),
    "8 bits and a number": (lambda x: (x.byte() & 1).int(), (2, 4, 6, 6)),
    "upsampling to 9 x 9": (lambda x: F.interpolate(x, size=9, mode="bilinear"), (2, 4, 9, 9)),
    "triu of a constant": (lambda x: x * torch.ones(6, 6).triu_(), (2, 4, 6, 6)),
    "Frobenius and 1-norm": (lambda x: torch.linalg.matrix_norm(x) + torch.linalg.matrix_norm(x, 1), (2, 4)),
    "vector 2-norm": (lambda x: torch.linalg.norm(x, 2, 1), (2, 6, 6)),
    "every second row": (lambda x: x[:, ::2] * 2, (2, 2, 6, 6)),
    "circular padding": (lambda x: F.pad(x[0], (1, 1), mode="circular"), (4, 6, 8)),
    "another type and device": (lambda x: x.to(x.device, torch.float16), (2, 4, 6, 6)),
}


@pytest.mark.parametrize("name", COMPILED)
def test_their_other_forms_compile(name):
    function, shape = COMPILED[name]
    assert inferred(function, X).shape == shape


GELU_1 = 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715))  # of 1, approximated
OTHERWISE = {  # x, what the device computes, and what torch would
    "gelu": (F.gelu, [1.0], [GELU_1], [0.5 * (1 + math.erf(math.sqrt(0.5)))]),
    "gelu layer": (torch.nn.GELU(), [1.0], [GELU_1], [0.5 * (1 + math.erf(math.sqrt(0.5)))]),
    "divisor of an average": (
        lambda x: F.avg_pool2d(x.reshape(1, 1, 2, 2), 2, divisor_override=1).flatten(),
        [1.0, 2.0, 3.0, 6.0],
        [3.0],
        [12.0],
    ),
    "accumulating index_put": (
        lambda x: (x * 0).index_put_((torch.tensor([1, 1]),), x[:2], accumulate=True)[:1],
        [5.0, 7.0, 0.0],
        [0.0],
        [0.0],
    ),
    "quotient, rounded": (lambda x: torch.div(x, 2, rounding_mode="floor"), [-7.0, 5.0], [-3.5, 2.5], [-4.0, 2.0]),
    "quotient of integers": (
        lambda x: x.int().div(2, rounding_mode="floor").float(),
        [-7.0, 5.0],
        [-3.0, 2.0],
        [-4.0, 2.0],
    ),
    "variance with correction 2": (lambda x: x.var(0, correction=2), [0.0, 3.0, 6.0], 9.0, 18.0),
    "norm of order 0": (lambda x: x.norm(0, 0), [3.0, 4.0], math.inf, 2.0),
    "vector norm of order 0": (lambda x: torch.linalg.vector_norm(x, 0), [3.0, 4.0], math.inf, 2.0),
    "bincount beyond its length": (
        lambda x: torch.bincount(x.int(), minlength=3).float(),
        [0.0, 5.0, 0.0],  # 5 counts as position 2: three values, less one
        [2.0, 0.0, 1.0],
        [2.0, 0.0, 0.0, 0.0, 0.0, 1.0],
    ),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_what_the_device_computes_otherwise_is_computed_like_the_device(name):
    function, x, on_device, by_torch = OTHERWISE[name]
    torch.testing.assert_close(inferred(function, torch.tensor(x)), torch.tensor(on_device))
    torch.testing.assert_close(function(torch.tensor(x)), torch.tensor(by_torch))


def test_accumulating_index_put_keeps_one_of_the_values():
    function = OTHERWISE["accumulating index_put"][0]
    whole = inferred(
        lambda x: (x * 0).index_put((torch.tensor([0, 1]),), x[:2] + 1, True), torch.tensor([5.0, 7.0, 0.0])
    )
    assert whole.tolist() == [6.0, 8.0, 0.0]
    assert function(torch.tensor([5.0, 7.0, 0.0])).tolist() == [0.0]


@pytest.mark.parametrize("name", ["divisor of an average", "accumulating index_put", "quotient, rounded"])
def test_a_lost_argument_is_warned_of_once_while_compiling(name, capfd):
    function, x, *_ = OTHERWISE[name]
    model = poptorch.inferenceModel(Call(function))
    for _ in range(2):
        model(torch.tensor(x))
    assert capfd.readouterr().err.count("PopTorch ignores this argument") == 1


@pytest.mark.parametrize(("p", "expected"), [(0.5, math.log(2)), (1.0, math.nan)])
def test_binary_cross_entropy_is_not_kept_finite(p, expected):
    loss = trained(lambda x: F.binary_cross_entropy(x, torch.ones(1)), torch.tensor([p]), marks_loss=False)
    torch.testing.assert_close(loss, torch.tensor(expected), equal_nan=True)
    assert math.isfinite(F.binary_cross_entropy(torch.tensor([p]), torch.ones(1)))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_binary_cross_entropy_has_weights_and_reductions(reduction):
    p, target, weight = torch.tensor([0.2, 0.9, 0.4]), torch.tensor([0.0, 1.0, 0.5]), torch.tensor([1.0, 2.0, 3.0])
    ours = trained(
        lambda x: F.binary_cross_entropy(x, target.to(x.device), weight.to(x.device), reduction=reduction),
        p,
        marks_loss=False,
    )
    torch.testing.assert_close(ours, F.binary_cross_entropy(p, target, weight, reduction=reduction))


def test_multilabel_soft_margin_loss_is_no_loss_of_the_graph():
    """torch computes it in Python, from operations that are marked as no loss."""
    with pytest.raises(poptorch.Error, match="Couldn't find a loss in graph"):
        trained(lambda x: F.multilabel_soft_margin_loss(x, torch.ones(2, 3)), torch.rand(2, 3), marks_loss=False)
