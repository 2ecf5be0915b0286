"""Arguments of a call, what forward may do on the device, and half precision."""

from typing import Type

import poptorch
import pytest
import torch
import torch.nn.functional as F
from poptorch._args_parser import ArgsParser
from torch._subclasses.fake_tensor import DynamicOutputShapeException


class Call(torch.nn.Module):
    """A module from a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, scale=2, *, offset=0):
        return self.function(x) * scale + offset


def identity():
    return poptorch.inferenceModel(Call(lambda x: x))


MISMATCHES = [
    (lambda m: m(torch.ones(3)), r"Shape mismatch for x: expected torch.Size\(\[2\]\) but got torch.Size\(\[3\]\)"),
    (lambda m: m(torch.ones(2).int()), "Data type mismatch for x: expected torch.float32 but got torch.int32"),
    (lambda m: m(3), "Type mismatch for x: expected <class 'torch.Tensor'> but got <class 'int'>"),
    (lambda m: m(torch.ones(2), 3), "Value mismatch for scale: expected 2 but got 3"),
    (lambda m: m(torch.ones(2), offset=1), "Value mismatch for offset: expected 0 but got 1"),
]


@pytest.mark.parametrize("call, message", MISMATCHES)
def test_inputs_of_another_form_than_the_compilations_are_refused(call, message):
    model = identity()
    model(torch.ones(2))
    with pytest.raises(poptorch.Error, match=message + r"(.|\n)*call destroy\(\)"):
        call(model)
    model.destroy()
    if "Value" in message or "Shape" in message:
        call(model)


def test_containers_are_compared_in_all_their_parts():
    model = poptorch.inferenceModel(Call(lambda d: d["a"][0] + d["b"]))
    model({"a": (torch.ones(2),), "b": torch.ones(2)})
    assert model({"b": torch.zeros(2), "a": (torch.ones(2),)}).tolist() == [2, 2]
    for wrong, message in [
        ({"a": (torch.ones(2),)}, "Missing arguments: b"),
        ({"a": (torch.ones(2), 1), "b": torch.ones(2)}, r"Length mismatch for x\[a\]"),
    ]:
        with pytest.raises(poptorch.Error, match=message):
            model(wrong)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((), poptorch.Error, "Mandatory parameter x missing"),
        ((1, 2, 3, 4), AssertionError, "Too many arguments provided"),
    ],
)
def test_calls_must_fit_the_signature(arguments, error, message):
    with pytest.raises(error, match=message):
        identity()(*arguments)
    with pytest.raises(AssertionError, match="other is not a valid parameter"):
        identity()(torch.ones(1), other=1)
    with pytest.raises(AssertionError, match="x was passed more than once"):
        identity()(torch.ones(1), x=1)


def test_a_function_without_a_signature_takes_any_arguments():
    bound = ArgsParser(torch.nn.functional.logsigmoid).bind((torch.ones(1),), {"out": None})
    assert bound.args == [torch.ones(1)] and bound.kwargs == {"out": None}
    with pytest.raises(TypeError, match="or a callable, got"):
        poptorch.inferenceModel(3)


def test_inputs_changed_in_place_are_changed_for_the_program():
    x = torch.arange(4.0)
    poptorch.inferenceModel(Call(lambda x: x.add_(1)), poptorch.Options().deviceIterations(2))(x)
    assert x.tolist() == [1, 2, 3, 4]


def test_inputs_that_need_gradients_are_detached_with_a_warning(capfd):
    result = identity()(torch.ones(2, requires_grad=True))
    assert not result.requires_grad
    assert "will be detached" in capfd.readouterr().err
    x = torch.ones(2, requires_grad=True)
    poptorch.inferenceModel(Call(lambda x: x.mul_(3)))(x)
    assert x.tolist() == [3, 3] and x.is_leaf


def test_strided_inputs_are_converted_with_one_warning(capfd):
    model = identity()
    for _ in range(2):
        model(torch.ones(2, 3).t())
    assert capfd.readouterr().err.count("not contiguous") == 1


READS = [
    lambda x: x.sum().item(),
    lambda x: x * float(x.sum()),
    lambda x: x if x.sum() > 0 else -x,
    lambda x: torch.tensor(x.tolist()),
    lambda x: x * int(x.sum()),
    lambda x: x + len(f"{x.sum():.2f}"),
    lambda x: x * (1.0 in x),
    lambda x: x * torch.allclose(x, x),
    lambda x: x + torch.arange(x.sum()),
    lambda x: torch.full((2,), x.sum()),
    lambda x: x[x.argmax()],
    lambda x: x[: x.argmax() + 1],
    lambda x: x * x[0].item(),
    lambda x: assigned(x, x.argmax(), 0.0),
]


@pytest.mark.parametrize("read", READS)
def test_values_cannot_be_read_while_the_model_is_on_the_device(read):
    with pytest.raises(poptorch.Error, match="aten::item is only supported in eager mode"):
        poptorch.inferenceModel(Call(read))(torch.ones(2))


SELECTIONS = {
    "nonzero": lambda x: x.nonzero(),
    "nonzero as a tuple": lambda x: torch.nonzero(x, as_tuple=True)[0],
    "where": lambda x: torch.where(x > 1)[0],
    "argwhere": torch.argwhere,
    "masked_select": lambda x: torch.masked_select(x, x > 1),
    "unique": torch.unique,
    "unique of a tensor": lambda x: x.unique(return_counts=True)[0],
    "unique_consecutive": lambda x: x.unique_consecutive(),
    "getitem": lambda x: x[x > 1],
    "getitem of a byte mask": lambda x: x[(x > 1).byte()],
    "getitem of several indices": lambda x: x[None][:, x > 1],
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_results_shaped_by_values_are_refused_with_what_to_do_instead(name):
    operation, advice = name.split()[0], r"(.|\n)*torch.where\(mask"
    error: Type[Exception] = poptorch.Error
    expected = f"Operations using aten::{operation} are unsupported {advice}"
    if operation == "getitem":  # torch itself finds that out, on its way to the device
        error, expected = DynamicOutputShapeException, f"^aten.index.Tensor is unsupported {advice}"
    with pytest.raises(error, match=expected):
        poptorch.inferenceModel(Call(SELECTIONS[name]))(torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.bincount(x.long()), "Bincount `minlength` must be specified and must be a constant."),
        (lambda x: x.long().bincount(), "Bincount `minlength` must be specified and must be a constant."),
        (lambda x: F.one_hot(x.long()), "OneHot num classes must be specified and must be constant."),
    ],
)
def test_lengths_that_values_would_decide_must_be_given(function, message):
    with pytest.raises(poptorch.Error, match=message):
        poptorch.inferenceModel(Call(function))(torch.tensor([1.0, 2.0, 3.0]))


def assigned(x, index, value):
    y = x.clone()
    y[index] = value
    return y


SHAPED_BY_SHAPES = {
    "a masked assignment": (lambda x: assigned(x, x > 1, 0.0), [1, 0, 0]),
    "an assignment to rows": (lambda x: assigned(x[:, None], x > 1, torch.zeros(1)), [[1], [0], [0]]),
    "an assignment at indices": (lambda x: assigned(x, x.long()[:2], 7.0), [1, 7, 7]),
    "where": (lambda x: torch.where(x > 1, x, -x), [-1, 2, 3]),
    "masked_fill": (lambda x: x.masked_fill(x > 1, 0.0), [1, 0, 0]),
    "indices": (lambda x: x[x.long() - 1], [1, 2, 3]),
    "index_select": (lambda x: x.index_select(0, x.argmax()[None]), [3]),
    "count_nonzero": (lambda x: torch.count_nonzero(x, dim=[0]), 3),
    "bincount": (lambda x: torch.bincount(x.long(), minlength=5), [0, 1, 1, 1, 0]),
    "one_hot": (lambda x: F.one_hot(x.long() - 1, num_classes=3)[0], [1, 0, 0]),
    "arange of a size": (lambda x: torch.arange(x.shape[0]) + x, [1, 3, 5]),
    "text of a vector": (lambda x: x + len(f"{x}") * 0, [1, 2, 3]),
}


@pytest.mark.parametrize("name", SHAPED_BY_SHAPES)
def test_results_shaped_by_shapes_are_those_of_torch(name):
    function, expected = SHAPED_BY_SHAPES[name]
    assert poptorch.inferenceModel(Call(function))(torch.tensor([1.0, 2.0, 3.0]), 1).tolist() == expected


def test_constants_of_the_host_can_be_read_on_the_device():
    step = torch.tensor(2)
    assert poptorch.inferenceModel(Call(lambda x: x[:: step.item()]))(torch.ones(4)).tolist() == [2, 2]


def test_a_constant_of_the_host_comes_back_as_it_is():
    constant = torch.tensor([1, 2, 3])
    model = poptorch.inferenceModel(Pair(constant), poptorch.Options().deviceIterations(2))
    with pytest.warns(UserWarning, match="Output expected to be on the IPU but is on cpu"):
        rows, same = model(torch.ones(4))
    assert rows.shape == (4,) and same is constant


class Pair(torch.nn.Module):
    def __init__(self, constant):
        super().__init__()
        self.constant = constant

    def forward(self, x):
        return x, self.constant


def test_is_running_on_ipu_only_there():
    seen = []
    model = Call(lambda x: seen.append(poptorch.isRunningOnIpu()) or x)
    model(torch.ones(1))
    poptorch.inferenceModel(model)(torch.ones(1))
    assert seen[0] is False and all(seen[1:])
    assert not poptorch.isRunningOnIpu()


def test_tensors_asked_for_on_the_ipu_are_made_here():
    model = Call(lambda x: x.to("ipu") + torch.ones(2, device="ipu"))
    assert poptorch.inferenceModel(model)(torch.ones(2)).tolist() == [4, 4]


def test_a_function_of_the_programs_own_type_passes_through():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2

    options = poptorch.Options().deviceIterations(2)
    assert poptorch.inferenceModel(Call(Twice.apply), options)(torch.ones(4)).tolist() == [4] * 4


HALF = torch.float16


def test_activations_decide_the_type_of_a_layer():
    for weights, inputs in [(torch.float32, HALF), (HALF, torch.float32), (HALF, HALF)]:
        for layer, shape in [(torch.nn.Linear(4, 5), (3, 4)), (torch.nn.Conv2d(4, 5, 1), (2, 4, 3, 3))]:
            out = poptorch.inferenceModel(layer.to(weights))(torch.ones(shape, dtype=inputs))
            assert out.dtype == inputs


def test_mixed_operands_elsewhere_become_float():
    model = poptorch.inferenceModel(Call(lambda x: x + torch.ones(2)))
    assert model(torch.ones(2, dtype=HALF)).dtype == torch.float32


def test_a_half_model_learns():
    torch.manual_seed(0)

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(
                torch.nn.Conv2d(1, 4, 3, padding=1),
                torch.nn.GroupNorm(2, 4),
                torch.nn.ReLU(),
                torch.nn.Flatten(),
                torch.nn.Linear(64, 3),
            )

        def forward(self, x, y):
            return F.cross_entropy(self.net(x), y)

    model = Classifier().half()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, loss_scaling=64.0)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    x, y = torch.randn(6, 1, 4, 4).half(), torch.tensor([0, 1, 2, 0, 1, 2])
    losses = [executor(x, y) for _ in range(30)]
    assert losses[0].dtype == HALF
    assert losses[-1] < 0.3 * losses[0]
    assert all(parameter.dtype == HALF for parameter in model.parameters())


def test_operations_that_only_an_ipu_has_say_so():
    for call in (
        lambda: poptorch.custom_op((torch.ones(1),), "Cube", "custom.ops", 1, (torch.ones(1),)),
        lambda: poptorch.ctc_beam_search_decoder(torch.ones(1), torch.ones(1)),
        lambda: poptorch.fps(torch.ones(2, 2), [0, 2]),
        lambda: poptorch.nearest(torch.ones(2, 2), torch.ones(2, 2)),
    ):
        with pytest.raises(poptorch.Error, match=r"emulate|IPU"):
            call()
    with pytest.raises(ValueError, match="must all be the same"):
        poptorch.custom_op((), "Cube", "custom.ops", 1, (), attributes={"a": [1, "b"]})


def test_control_flow_and_slices_have_their_meaning():
    def steps(x):
        (x,) = poptorch.for_loop(3, lambda v: v * 2, [x])
        (x,) = poptorch.cond(x.sum() > 0, lambda v: v + 1, [x], lambda v: v - 1, [x])
        x = poptorch.dynamic_update(x, torch.tensor([0.0]), 0, torch.tensor([1]), 1)
        return poptorch.dynamic_slice(x, 0, torch.tensor([1]), 2, 1)

    assert poptorch.inferenceModel(Call(steps))(torch.ones(4)).tolist() == [0, 18]


def test_a_loop_runs_once_where_there_is_no_device():
    """PopTorch's own operators on a CPU know nothing of the count."""
    assert poptorch.for_loop(3, lambda v: v * 2, [torch.ones(1)])[0] == 2


def test_a_loop_in_a_loop_and_what_its_body_may_not_do_are_refused():
    class Sum(torch.nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body
            self.register_buffer("sum", torch.zeros(2))

        def forward(self, x):
            return poptorch.for_loop(4, lambda v: self.body(self, v), [x])

    def refused(body, message):
        with pytest.raises(poptorch.Error, match=message):
            poptorch.inferenceModel(Sum(body))(torch.ones(2))

    refused(lambda model, v: poptorch.for_loop(2, lambda w: w * 2, [v]), "encountered before previous")
    refused(lambda model, v: model.sum.copy_(model.sum + v) + v, "changes a buffer or parameter in place")
    refused(lambda model, v: (v, v), "takes 1 tensors and returns 2")
    (result,) = poptorch.inferenceModel(Sum(lambda model, v: v.add_(model.sum + 1)))(torch.ones(2))
    assert result.tolist() == [5, 5]


def test_both_branches_of_a_condition_are_compiled():
    def chosen(then_body, else_body):
        def forward(x):
            return poptorch.cond(x.sum() > 0, then_body, [x], else_body, [x])[0] + x

        return poptorch.inferenceModel(Call(forward))(torch.ones(2))

    assert chosen(lambda v: v.add_(1) * 1, lambda v: v.zero_()).tolist() == [6, 6]  # (1 + 1) + 1: bodies get copies
    with pytest.raises(poptorch.Error, match=r"Unsupported ops .*\[aten::lgamma\]"):
        chosen(lambda v: v + 1, torch.lgamma)
    with pytest.raises(poptorch.Error, match="`else` branch output has an empty shape"):
        chosen(torch.sum, torch.sum)
    with pytest.raises(poptorch.Error, match="same number of outputs"):
        chosen(lambda v: v, lambda v: (v, v))


@pytest.mark.parametrize(
    ("mode", "factor", "message"),
    [
        ("InputChannels", 5, "Invalid serialisation factor 5 for input channels dim 12"),
        ("ReducingDim", 3, "Invalid serialisation factor 3 for reducing dimension 4"),
        ("OutputChannels", 4, "Invalid serialisation factor 4 for output channels dim 6"),
        ("OutputChannels", 0, "must be a non-zero positive integer"),
    ],
)
def test_a_matrix_product_is_cut_in_equal_parts(mode, factor, message):
    def product(factor):
        mode_ = getattr(poptorch.MatMulSerializationMode, mode)
        return poptorch.inferenceModel(
            Call(lambda x: poptorch.serializedMatMul(x, x[0, 0, :, None].expand(4, 6), mode_, factor))
        )

    assert product(2)(torch.ones(2, 6, 4)).shape == (2, 6, 6)
    with pytest.raises(poptorch.Error, match=message):
        product(factor)(torch.ones(2, 6, 4))


def test_a_function_on_the_host_runs_in_the_middle_of_a_model():
    seen = []

    def on_host(x):
        seen.append((poptorch.isRunningOnIpu(), x.sum().item()))
        return x + 1

    operation = poptorch.CPU(on_host, "own")
    assert poptorch.inferenceModel(Call(lambda x: operation(x * 2)))(torch.ones(2)).tolist() == [6, 6]
    assert seen[-1] == (False, 4.0)


def test_steering_functions_return_what_they_are_given():
    x, y = torch.ones(2), torch.zeros(2)
    assert poptorch.nop(x) is x
    assert poptorch.set_available_memory(x, 0.5) is x
    assert poptorch.recomputationCheckpoint(x) is x
    assert poptorch.recomputationCheckpoint(x, y) == (x, y)
    assert poptorch.recomputationCheckpoint([x, y]) == [x, y]
    with pytest.raises(ValueError):
        poptorch.recomputationCheckpoint(3)
    mode = poptorch.MatMulSerializationMode.ReducingDim
    assert poptorch.serializedMatMul(torch.eye(2), torch.eye(2), mode, 2).trace() == 2


@pytest.mark.parametrize("name", ["for_loop", "cond"])
def test_loops_and_conditions_are_for_inference(name):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            def body(v):
                return v * self.w

            if name == "for_loop":
                (y,) = poptorch.for_loop(2, body, [x])
            else:
                (y,) = poptorch.cond(x > 0, body, [x], body, [x])
            return poptorch.identity_loss(y, "sum")

    assert poptorch.inferenceModel(Model())(torch.ones(1)) == 1
    with pytest.raises(poptorch.Error, match=rf"poptorch.{name}\(\) is only supported in inference"):
        poptorch.trainingModel(Model())(torch.ones(1))
