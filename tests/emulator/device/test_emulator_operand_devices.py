"""Tensors of the host among operands of the device are refused, as PopTorch refuses them."""

import poptorch
import pytest
import torch
import torch.nn.functional as F

MASK = torch.tensor([0.0, 1.0, 2.0, 3.0])


class Call(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.attribute = MASK.clone()
        self.register_buffer("buffer", MASK.clone())
        self.listed = [torch.nn.Linear(4, 4)]

    def forward(self, x):
        return self.function(self, x)


OF_THE_HOST = {
    "an attribute": lambda model, x: x * model.attribute,
    "an operand in a list": lambda model, x: torch.cat([x, model.attribute[None]]),
    "computed on the host": lambda model, x: x + model.attribute.exp(),
    "a named operand": lambda model, x: torch.where(x > 0, x, other=model.attribute),
    "a legacy constructor": lambda model, x: x.index_select(1, torch.LongTensor([1, 0])),
    "a function that has no default device": lambda model, x: x @ torch.eye(4),
    "as_tensor": lambda model, x: x + torch.as_tensor(1.0),
    "from_numpy": lambda model, x: x + torch.from_numpy(MASK.numpy()),
    "a layer in a list": lambda model, x: model.listed[0](x),
    "a mask of attention": lambda model, x: F.scaled_dot_product_attention(
        x, x, x, attn_mask=model.attribute[:2, None]
    ),
}


@pytest.mark.parametrize("name", OF_THE_HOST)
def test_a_tensor_of_the_host_is_refused(name):
    message = r"Expected an IPU tensor but got tensor\(device=cpu, shape=\[.*\], dtype=(Float|Long)\)"
    with pytest.raises(poptorch.Error, match=message):
        poptorch.inferenceModel(Call(OF_THE_HOST[name])).compile(torch.ones(2, 4))


def test_the_message_has_shape_and_type():
    model = Call(lambda model, x: torch.index_select(x, 0, torch.LongTensor([1, 0])))
    with pytest.raises(poptorch.Error, match=r"tensor\(device=cpu, shape=\[2\], dtype=Long\)\.\nConstant tensors"):
        poptorch.inferenceModel(model).compile(torch.ones(2, 4))


ON_THE_DEVICE = {
    "a buffer": lambda model, x: x * model.buffer,
    "a number": lambda model, x: x * 2.0 + model.attribute.shape[0],
    "sent there": lambda model, x: x * model.attribute.to("ipu"),
    "sent to the input's device": lambda model, x: x * model.attribute.to(x.device),
    "made there": lambda model, x: x @ torch.eye(4, device=x.device),
    "made without a device, with a warning": lambda model, x: x * torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "of the type of one there": lambda model, x: x * model.attribute.type_as(x),
    "copied there": lambda model, x: x + torch.zeros(4).copy_(model.attribute),
    "an index": lambda model, x: x[:, torch.LongTensor([1, 0, 2, 3])],
    "an assigned value": lambda model, x: _assigned(x, model.attribute),
    "a shape alone": lambda model, x: x[:1].expand_as(torch.as_tensor(MASK)[None]),
    "a row of one there": lambda model, x: sum(row * model.buffer for row in x)[None],
    "a state in nested tuples": lambda model, x: _states(x),
    "a layer of torch made in forward": lambda model, x: torch.nn.LayerNorm(4)(x),
}


def _assigned(x, value):
    result = x.clone()
    result[0] = value
    return result


def _states(x):
    output, (hidden, cell) = torch.nn.LSTM(4, 4)(x[None])
    return output + hidden * cell


@pytest.mark.parametrize("name", ON_THE_DEVICE)
def test_what_is_there_or_is_sent_there_computes(name):
    poptorch.inferenceModel(Call(ON_THE_DEVICE[name]))(torch.ones(2, 4))


def test_constants_of_the_host_compute_among_themselves():
    model = Call(lambda model, x: x * float((model.attribute * MASK).sum()))
    assert poptorch.inferenceModel(model)(torch.ones(1, 4)).tolist() == [[14.0] * 4]


def test_strict_mode_is_the_switch():
    options = poptorch.Options().emulateUnsupportedOperators()
    assert poptorch.inferenceModel(Call(OF_THE_HOST["an attribute"]), options)(torch.ones(1, 4)).tolist() == [
        [0, 1, 2, 3]
    ]
