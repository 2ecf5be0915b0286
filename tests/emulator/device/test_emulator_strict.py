"""Strict mode: what PopTorch 3.4 cannot compile is refused here too, and nothing else is."""

import poptorch
import pytest
import torch
import torch.nn.functional as F
from poptorch._device.operator_table import HANDLED, STANDS_FOR, TAKEN_APART, is_supported, plain_name


class Call(torch.nn.Module):
    """A module from a function, whose argument depends on a weight."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.function(x * self.weight)


def outcome(function, shape=(2, 4, 6, 6), options=None):
    torch.manual_seed(0)
    return poptorch.inferenceModel(Call(function), options)(torch.rand(shape) + 0.1)


REFUSED = {  # in words of the operators that are left when torch has taken the function apart
    "stft": (lambda x: torch.stft(x.flatten(), 16, return_complex=True).abs(), "_fft_r2c"),
    "fft": (lambda x: torch.fft.fft(x).abs(), "_fft_r2c"),
    "svd": (lambda x: torch.linalg.svd(x)[1], "_linalg_svd"),
    "inv": (torch.linalg.inv, "linalg_inv_ex"),
    "grid_sample": (lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False), "grid_sampler_2d"),
    "searchsorted": (lambda x: torch.searchsorted(x.sort(-1)[0], x), "searchsorted"),
    "erfinv": (torch.erfinv, "erfinv"),
    "lgamma": (torch.lgamma, "lgamma"),
    "cummax": (lambda x: torch.cummax(x, 0)[0], "cummax"),
    "logcumsumexp": (lambda x: x.logcumsumexp(0), "logcumsumexp"),
    "kthvalue": (lambda x: torch.kthvalue(x, 1)[0], "kthvalue"),
    "histc": (torch.histc, "histc"),
    "nan_to_num": (torch.nan_to_num, "nan_to_num"),
    "nan_to_num in place": (lambda x: (x + 1).nan_to_num_(), "nan_to_num"),
    "adaptive_max_pool2d": (lambda x: F.adaptive_max_pool2d(x, 2), "adaptive_max_pool2d"),
    "max_unpool2d": (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), "max_unpool2d"),
    "nearest-exact": (lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"), "_upsample_nearest_exact2d"),
    "multi_margin_loss": (lambda x: F.multi_margin_loss(x[0, :, :, 0], torch.zeros(4).long()), "multi_margin_loss"),
    "huber_loss": (lambda x: F.huber_loss(x, x + 1), "huber_loss"),
    "multinomial": (lambda x: torch.multinomial(x[0, 0], 1), "multinomial"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_handler_is_refused_by_name(name):
    function, operator = REFUSED[name]
    expected = rf"'poptorch_cpp_error': Unsupported ops found in compiled model: \[(aten::\w+, )*aten::{operator}[,\]]"
    with pytest.raises(poptorch.Error, match=expected):
        outcome(function)


COMPILED = {
    "convolution, norms, pools": lambda x: F.adaptive_avg_pool2d(F.max_pool2d(F.group_norm(F.conv2d(x, x), 2), 1), 1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "attention layer": lambda x: torch.nn.MultiheadAttention(6, 2)(x[0], x[0], x[0])[0],
    "transformer layer": lambda x: torch.nn.TransformerEncoderLayer(6, 2, 8)(x[0]),
    "one recurrent layer": lambda x: torch.nn.LSTM(6, 3)(x[0])[0] + torch.nn.GRU(6, 3)(x[0])[0],
    "nearest and bilinear": lambda x: F.interpolate(F.interpolate(x, scale_factor=2), scale_factor=2, mode="bilinear"),
    "random numbers": lambda x: F.dropout(torch.rand_like(x) + torch.bernoulli(x.clamp(0, 1)), 0.5),
    "sorting": lambda x: (x.topk(2)[0], x.sort()[0], x.argmax(-1), x.median(), F.one_hot(x.argmax(-1), 6)),
    "assignments": lambda x: (x + 1).fill_(2.0).zero_().masked_fill_(x > 1, 3.0).index_fill_(0, torch.tensor([0]), 1.0),
    "smoothed loss": lambda x: F.cross_entropy(x[0, 0], torch.zeros(6).long(), label_smoothing=0.1),
    "weight norm": lambda x: torch._weight_norm(x[0, 0], x[0, 0, :, :1], 0),
    "isinf": lambda x: torch.isinf(x) | torch.isnan(x),
}


@pytest.mark.parametrize("name", COMPILED)
def test_what_has_handlers_compiles(name):
    outcome(COMPILED[name])


@pytest.mark.parametrize("mode, dims", [("linear", 1), ("trilinear", 3)])
def test_linear_and_trilinear_upsampling_are_refused_by_their_handler(mode, dims):
    with pytest.raises(poptorch.Error, match=rf"Unsupported upsample mode aten::upsample_{mode}{dims}d"):
        outcome(lambda x: F.interpolate(x, scale_factor=2, mode=mode), (1, 1) + (4,) * dims)


RECURRENT = {
    "Only LSTM with 1 layer supported": lambda x: torch.nn.LSTM(6, 3, num_layers=2)(x[0])[0],
    "Only RNN with 1 layer is supported": lambda x: torch.nn.RNN(6, 3, num_layers=2)(x[0])[0],
    "Bidirectional RNN is not supported": lambda x: torch.nn.RNN(6, 3, bidirectional=True)(x[0])[0],
    "LSTM without biases not supported": lambda x: torch.nn.LSTM(6, 3, bias=False)(x[0])[0],
    "bidirectional GRU not supported": lambda x: torch.nn.GRU(6, 3, bidirectional=True)(x[0])[0],
    "RNN without biases is not supported": lambda x: torch.nn.RNN(6, 3, bias=False)(x[0])[0],
    "LSTM only supports dropout = 0.0": lambda x: torch.lstm(
        x[0], (torch.zeros(1, 4, 3),) * 2, list(torch.nn.LSTM(6, 3).parameters()), True, 1, 0.5, True, False, False
    )[0],
}


@pytest.mark.parametrize("message", RECURRENT)
def test_recurrent_layers_other_than_plain_ones_are_refused(message):
    with pytest.raises(poptorch.Error, match=message):
        outcome(RECURRENT[message])


def test_a_gru_without_biases_compiles():
    outcome(lambda x: torch.nn.GRU(6, 3, bias=False)(x[0])[0])


def test_what_is_computed_from_constants_alone_is_computed_while_compiling():
    causal = outcome(lambda x: x[0, 0] * torch.tril(torch.ones(6, 6)) * torch.linspace(1, 2, 6).lgamma().exp())
    assert causal[0, 5] == 0 and causal[5, 0] > 0


def test_an_integer_buffer_is_a_constant_and_a_float_one_is_not():
    class Buffered(torch.nn.Module):
        def __init__(self, buffer):
            super().__init__()
            self.register_buffer("mask", buffer)

        def forward(self, x):
            return x * torch.tril(self.mask)

    poptorch.inferenceModel(Buffered(torch.ones(2, 2, dtype=torch.int32)))(torch.ones(2, 2))
    with pytest.raises(poptorch.Error, match=r"\[aten::tril\]"):
        poptorch.inferenceModel(Buffered(torch.ones(2, 2)))(torch.ones(2, 2))


def test_all_unsupported_operators_are_named_once():
    with pytest.raises(poptorch.Error, match=r"compiled model: \[aten::lgamma, aten::erfinv\]\."):
        outcome(lambda x: torch.lgamma(x) + torch.erfinv(x) + torch.lgamma(x))


def test_a_function_of_the_host_may_use_anything():
    on_host = poptorch.CPU(torch.lgamma, "lgamma")
    assert outcome(lambda x: on_host(x) + 1).shape == (2, 4, 6, 6)
    with pytest.raises(poptorch.Error, match=r"\[aten::erfinv\]"):
        outcome(lambda x: torch.erfinv(on_host(x)))


def test_poptorchs_own_operations_compile():
    def forward(x):
        start = x.argmax().reshape(1) * 0
        part = poptorch.dynamic_slice(x, 0, start, 1, 1)
        return poptorch.dynamic_update(x, part, 0, start, 1) + poptorch.serializedMatMul(
            x, x, poptorch.MatMulSerializationMode.Disabled
        )

    outcome(forward)


def test_the_option_and_the_environment_switch_it_off(monkeypatch):
    assert outcome(torch.lgamma, options=poptorch.Options().emulateUnsupportedOperators()).shape == (2, 4, 6, 6)
    monkeypatch.setenv("POPTORCH_EMULATOR_STRICT", "0")
    assert outcome(torch.lgamma).shape == (2, 4, 6, 6)
    outcome(lambda x: torch.nn.GRU(6, 3, bidirectional=True)(x[0])[0])
    monkeypatch.setenv("POPTORCH_EMULATOR_STRICT", "1")
    with pytest.raises(poptorch.Error, match="Unsupported ops"):
        outcome(torch.lgamma)


def test_the_tables_do_not_overlap_and_name_what_torch_has():
    assert not (HANDLED & TAKEN_APART or HANDLED & STANDS_FOR or TAKEN_APART & STANDS_FOR)
    known = {plain_name(name.partition(".")[0]) for name in torch._C._dispatch_get_all_op_names() if "aten::" in name}
    assert {name for name in TAKEN_APART if name not in known} == set()


@pytest.mark.parametrize(
    ("name", "plain"),
    [("aten::add_", "add"), ("aten::__and__", "__and__"), ("aten::normal_", "normal_"), ("aten::lgamma", "lgamma")],
)
def test_the_form_that_works_in_place_is_the_same_operator(name, plain):
    assert plain_name(name) == plain
    assert is_supported(plain) == (plain != "lgamma")


def test_a_multi_conv_needs_convolutions_and_no_other_inside():
    def nested(x):
        with poptorch.MultiConv():
            with poptorch.MultiConv():
                return F.conv2d(x, x)

    def empty(x):
        with poptorch.MultiConv():
            return x + 1

    def two(x):
        for _ in range(2):
            with poptorch.MultiConv():
                x = F.conv2d(x, x[:4, :, :1, :1])
        return x

    with pytest.raises(poptorch.Error, match=r"Nested poptorch\.MultiConv is not supported"):
        outcome(nested)
    with pytest.raises(poptorch.Error, match="Unexpected end_multi_conv"):
        outcome(empty)
    outcome(two, (4, 4, 2, 2))


def test_an_error_inside_a_multi_conv_is_the_one_that_is_seen():
    def failing(x):
        with poptorch.MultiConv():
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        outcome(failing)
