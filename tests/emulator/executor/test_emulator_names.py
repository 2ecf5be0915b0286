"""Names of tensors, where operations run, anchored tensors, and what the log and the counters tell."""

import logging

import poptorch
import pytest
import torch
import torch.nn.functional as F
from poptorch._device.loss_scaling import AutomaticLossScaling


class TwoStages(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU())
        self.second = torch.nn.Linear(3, 2)
        self.loss = torch.nn.MSELoss()
        poptorch.BeginBlock(self.second, ipu_id=1)

    def forward(self, x, y):
        with poptorch.NameScope("body"):
            x = self.first(x)
        z = self.second(x * 2) * 2
        return z, self.loss(z, y)


@pytest.fixture
def log(caplog, monkeypatch):
    logger = logging.getLogger("poptorch::python")
    monkeypatch.setattr(logger, "propagate", True)  # caplog listens to the root logger
    level = logger.level
    logger.setLevel(logging.DEBUG)
    yield lambda: [record.getMessage() for record in caplog.records]
    logger.setLevel(level)


def test_every_operation_is_logged_with_its_name_and_place(log):
    options = poptorch.Options().deviceIterations(2)
    poptorch.inferenceModel(TwoStages(), options).compile(torch.ones(2, 3), torch.ones(2, 2))
    placed = [line for line in log() if line.startswith("Operation ")]
    assert placed == [
        "Operation body/first/0/Linear:0 mode(Pipelined), ipu(0), stage(0)",
        "Operation body/first/1/Relu:0 mode(Pipelined), ipu(0), stage(0)",
        "Operation Mul:0 mode(Pipelined), ipu(0), stage(0)",
        "Operation second/Linear:0 mode(Pipelined), ipu(1), stage(1)",
        "Operation Mul:0/1 mode(Pipelined), ipu(1), stage(1)",
        "Operation loss/MseLoss:0 mode(Pipelined), ipu(1), stage(1)",
    ]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda x, **place: torch.ones(2, **place), "ones"),
        (lambda x, **place: torch.full_like(x, 2.0, **place), "full_like"),
        (lambda x, **place: torch.normal(0.0, 1.0, (2,), **place), "normal"),
    ],
)
def test_a_tensor_made_without_a_device_goes_to_the_ipu_with_one_warning(make, name, log):
    class Sum(torch.nn.Module):
        def __init__(self, **place):
            super().__init__()
            self.place = place

        def forward(self, x):
            return x + make(x, **self.place)

    poptorch.inferenceModel(Sum())(torch.ones(2))
    warning = f"No device set in torch.{name}(): forcing to IPU"
    assert log().count(warning) == 1
    poptorch.inferenceModel(Sum(device="ipu"))(torch.ones(2))
    assert log().count(warning) == 1


def test_a_random_tensor_around_another_needs_no_device(log):
    class Noise(torch.nn.Module):
        def forward(self, x):
            return torch.normal(x, 1.0)

    poptorch.inferenceModel(Noise())(torch.ones(2))
    assert not [line for line in log() if "No device set" in line]


def test_modules_give_no_names_where_the_option_says_so():
    options = poptorch.Options().deviceIterations(2).disableModuleNamescope()
    executor = poptorch.inferenceModel(TwoStages(), options)
    executor.compile(torch.ones(2, 3), torch.ones(2, 2))
    names = executor.getTensorNames()
    assert names[:4] == ["input", "input/1", "body/Linear:0", "body/Relu:0"]
    assert "first.0.weight" in names


class Product(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([2.0]))

    def forward(self, x):
        y = x * self.w
        return poptorch.identity_loss(y, "sum")


# x = 1 .. 8 in two updates of two micro steps of two replicas; w is 2, then 2 - 2.5 = -0.5 (lr 1, mean of 1 .. 4)
@pytest.mark.parametrize(
    "mode, products, updated",
    [
        (poptorch.OutputMode.Final, [-3.5, -4.0], [-7.0] * 2),
        (poptorch.OutputMode.All, [2.0, 4.0, 6.0, 8.0, -2.5, -3.0, -3.5, -4.0], [-0.5] * 4 + [-7.0] * 4),
        (poptorch.OutputMode.Sum, [2.0, 5.0], [-15.0] * 2),
    ],
)
def test_anchored_tensors_come_in_the_output_mode_of_the_model(mode, products, updated, log):
    options = poptorch.Options().deviceIterations(2).replicationFactor(2).outputMode(mode)
    options.Training.gradientAccumulation(2)
    options.anchorTensor("product", "Mul:0", poptorch.OutputMode.All)
    options.anchorTensor("updated", "UpdatedVar___w")
    options.anchorTensor("gradient", "Gradient___w")
    model = Product()
    executor = poptorch.trainingModel(model, options, poptorch.optim.SGD(model.parameters(), lr=1.0))
    executor(torch.arange(1.0, 9.0))
    assert executor.getAnchoredTensor("product").tolist() == products
    assert executor.getAnchoredTensor("updated").tolist() == updated
    assert len(executor.getAnchoredTensor("gradient")) == len(products)
    if mode == poptorch.OutputMode.All:  # each micro batch's own, divided by the replicas as the loss gradient is
        assert executor.getAnchoredTensor("gradient").tolist() == [x / 2 for x in range(1, 9)]
    assert "  anchor ( Mul:0 ALL/1 )" in log()


def test_an_anchor_without_its_tensor_is_an_error():
    options = poptorch.Options()
    options.anchorTensor("x", "Conv:0")
    with pytest.raises(poptorch.Error, match=r"Anchored tensor Conv:0 does not exist; there are .*Mul:0"):
        poptorch.inferenceModel(Product(), options)(torch.ones(1))


@pytest.mark.parametrize(
    "mode, outputs", [(poptorch.OutputMode.Final, 2), (poptorch.OutputMode.All, 8), (poptorch.OutputMode.EveryN, 4)]
)
def test_counters_have_a_time_for_each_transfer(mode, outputs):
    options = poptorch.Options().deviceIterations(4).replicationFactor(2).outputMode(mode, 2)
    executor = poptorch.inferenceModel(torch.nn.Identity(), options)
    executor(torch.ones(8, 2))
    counters = executor.getPerfCounters()
    assert [len(times) for times in counters["input"] + counters["output"]] == [8, outputs]
    low, high, mean = executor.getLatency()
    assert 0 <= low <= mean <= high


def test_synthetic_data_is_not_transferred():
    options = poptorch.Options().deviceIterations(4)
    options.enableSyntheticData(True)
    executor = poptorch.inferenceModel(torch.nn.Identity(), options)
    executor(torch.ones(4, 2))
    assert executor.getPerfCounters()["input"] == [[]]
    assert executor.getLatency() == (0.0, 0.0, 0.0)


def test_executors_take_free_devices_and_give_them_back(log):
    options = poptorch.Options().connectionType(poptorch.ConnectionType.OnDemand)
    kept = []
    for _ in range(2):
        kept.append(poptorch.inferenceModel(torch.nn.Identity(), options))
        kept[-1](torch.ones(1))
    taken = [int(line.split()[-1]) for line in log() if line.startswith("Attached to device")]
    assert taken[1] > taken[0]
    kept[0].detachFromDevice()
    assert f"Detached from device {taken[0]}" in log()
    kept[0].attachToDevice()
    assert log().count(f"Attached to device {taken[0]}") == 2


@pytest.mark.parametrize(
    "arguments, text",
    [
        ({}, "t: (\n (0.5000000 12.2500000)\n (3.0000000 1.0000000)\n)\n"),
        (
            {"separator": ";", "float_format": "scientific", "digits": 3},
            "t: (\n (5.00e-01;1.22e+01)\n (3.00e+00;1.00e+00)\n)\n",
        ),
        ({"max_line_width": 12, "digits": 3}, "t: (\n (0.50 \n   12.25)\n (3.00 1.00)\n)\n"),
        ({"summarise_threshold": 3, "edge_items": 0, "open_bracket": "[", "close_bracket": "]"}, "t: [\n ...\n]\n"),
    ],
)
def test_printed_tensors_have_the_form_that_is_asked_for(arguments, text, capfd):
    class Printing(torch.nn.Module):
        def forward(self, x):
            return poptorch.ipu_print_tensor(x, "t", **{"separator": " ", "digits": 8, **arguments}) + 1

    poptorch.inferenceModel(Printing())(torch.tensor([[0.5, 12.25], [3.0, 1.0]]))
    assert capfd.readouterr().err == text


def test_a_value_that_is_not_finite_ends_the_program_wherever_it_arises():
    class Hidden(torch.nn.Module):
        def forward(self, x):
            return torch.where(x > 0, torch.log(x), torch.zeros_like(x))

    options = poptorch.Options()
    options.Precision.enableFloatingPointExceptions(True)
    executor = poptorch.inferenceModel(Hidden(), options)
    assert executor(torch.ones(2)).tolist() == [0, 0]
    with pytest.raises(poptorch.Error, match="Floating point exception"):
        executor(torch.zeros(2))
    with pytest.raises(poptorch.Error, match="Floating point exception"):
        executor(torch.tensor([1.0, float("nan")]))


class Halves(torch.nn.Module):
    def __init__(self, dtype):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4).to(dtype)

    def forward(self, x):
        return F.mse_loss(self.layer(x), x)


def automatic(dtype, **settings):
    options = poptorch.Options()
    options.Training.setAutomaticLossScaling(True)
    for name, value in settings.items():
        options._Popart.set(f"automaticLossScalingSettings.{name}", value)
    options.anchorTensor("scale", "finalLossScale")
    torch.manual_seed(0)
    model = Halves(dtype)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.01, loss_scaling=4.0, use_combined_accum=False)
    return poptorch.trainingModel(model, options, optimizer), optimizer


def test_automatic_loss_scaling_doubles_the_scale_until_gradients_are_too_large():
    executor, optimizer = automatic(torch.float16)
    x = torch.ones(2, 4).half()
    scales = []
    for _ in range(20):
        executor(x)
        scales.append(float(executor.getAnchoredTensor("scale")))
    assert scales[:8] == [4.0 * 2**step for step in range(8)]
    peak = scales.index(max(scales))
    assert peak < 19 and scales[peak + 1] == scales[peak] / 2
    assert float(optimizer.state_dict()["ipu_state"]["lossScaleUpdateFactor"]) in (scales[-1] / 2, scales[-1] / 8)


def test_the_scale_changes_no_update_in_exact_arithmetic():
    weights = []
    for period in (1, 1000):  # a period of 1000 leaves the scale alone
        executor, _ = automatic(torch.float16, updatePeriod=period)
        for _ in range(3):
            executor(torch.ones(2, 4).half())
        weights.append(executor.model.layer.weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-3, atol=1e-3)  # float16 rounds at about 1e-3


def test_automatic_loss_scaling_needs_gradients_in_half_precision():
    executor, _ = automatic(torch.float32)
    with pytest.raises(poptorch.Error, match="No tracked gradient tensors of type fp16"):
        executor(torch.ones(2, 4))


def test_the_share_of_large_gradients_is_that_of_the_last_period_alone():
    scaling = AutomaticLossScaling(edge=0.5, threshold=0.5, period=2)
    calm, loud = torch.zeros(4).half(), torch.full((4,), 60000.0).half()  # above 0.5 x 65504
    factors = []
    for gradient in (calm, calm, calm, calm, loud, loud, calm, loud):
        scaling.watch(gradient)
        scaling.update()
        factors.append(float(scaling.factor))
    assert factors == [1, 2, 2, 4, 4, 2, 2, 4]  # exactly half of the last four values are large: not more than 0.5
