"""Batching and output modes (the layout [device iteration][accumulation][replica][micro batch])."""

from typing import Any, List

import poptorch
import pytest
import torch


class Tagged(torch.nn.Module):
    """Returns its rows, their sum, and how often it ran before."""

    def __init__(self):
        super().__init__()
        self.register_buffer("runs", torch.zeros(1))

    def forward(self, x):
        self.runs += 1  # type: ignore[assignment]  # a buffer
        return x * 10, x.sum(), self.runs


def run(model, inputs, *, iterations=1, replicas=1, mode=None, period=None, **grouping):
    options = poptorch.Options().deviceIterations(iterations).replicationFactor(replicas).broadcastBuffers(False)
    if grouping:
        options.inputReplicaGrouping(**grouping)
    if mode is not None:
        options.outputMode(mode, period)
    return poptorch.inferenceModel(model, options)(inputs)


X = torch.arange(12.0)


def test_rows_of_one_micro_step_go_to_the_replicas_in_turn():
    rows, sums, runs = run(Tagged(), X, iterations=3, replicas=2)
    assert torch.equal(rows, X * 10)
    assert sums.tolist() == [1, 5, 9, 13, 17, 21]  # two rows each
    assert runs.flatten().tolist() == [1, 1, 2, 2, 3, 3]  # each replica counts for itself


OUTPUT_MODES = [
    (poptorch.OutputMode.All, None, list(range(12)), [1, 5, 9, 13, 17, 21]),
    (poptorch.OutputMode.Final, None, [8, 9, 10, 11], [17, 21]),
    (poptorch.OutputMode.EveryN, 3, [8, 9, 10, 11], [17, 21]),
    (poptorch.OutputMode.EveryN, 1, list(range(12)), [1, 5, 9, 13, 17, 21]),
    (poptorch.OutputMode.Sum, None, [0 + 4 + 8, 1 + 5 + 9, 2 + 6 + 10, 3 + 7 + 11], [27, 39]),
]


@pytest.mark.parametrize("mode, period, rows, sums", OUTPUT_MODES)
def test_each_output_mode_returns_its_rows_for_every_replica(mode, period, rows, sums):
    result, scalars, _ = run(Tagged(), X, iterations=3, replicas=2, mode=mode, period=period)
    assert result.tolist() == [10.0 * row for row in rows]
    assert scalars.tolist() == sums


def test_a_scalar_that_is_returned_once_has_no_dimension():
    assert run(Tagged(), X)[1].shape == ()
    assert run(Tagged(), X, iterations=2)[1].shape == (2,)
    assert run(Tagged(), X, iterations=2, mode=poptorch.OutputMode.Final)[1].shape == ()


def test_training_returns_the_last_micro_step_and_inference_all():
    assert poptorch.inferenceModel(torch.nn.Linear(1, 1)).options.output_mode == poptorch.OutputMode.All
    assert poptorch.trainingModel(torch.nn.Linear(1, 1)).options.output_mode == poptorch.OutputMode.Final


def test_rows_that_cannot_be_divided_are_refused():
    with pytest.raises(AssertionError, match=r"Invalid batch dimension.*\(12\) must be a multiple of.*= 5"):
        run(Tagged(), X, iterations=5)


@pytest.mark.parametrize("kind, expected", [("Consecutive", [1, 1, 5, 5]), ("Orthogonal", [1, 5, 1, 5])])
def test_replicas_of_one_input_group_read_the_same_rows(kind, expected):
    group = getattr(poptorch.CommGroupType, kind)
    _, sums, _ = run(Tagged(), X[:4], replicas=4, input_group_size=2, input_group_type=group)
    assert sums.tolist() == expected


@pytest.mark.parametrize("period", [3, 4])
def test_a_return_period_must_divide_the_device_iterations(period):
    with pytest.raises(poptorch.Error, match="EveryN"):
        run(Tagged(), X[:2], iterations=2, mode=poptorch.OutputMode.EveryN, period=period)


def test_every_n_needs_a_period():
    with pytest.raises(AssertionError, match="output_return_period"):
        poptorch.Options().outputMode(poptorch.OutputMode.EveryN)


def test_the_combined_batch_counts_iterations_input_groups_and_accumulation():
    options = poptorch.Options().deviceIterations(2).replicationFactor(6)
    options.inputReplicaGrouping(3, poptorch.CommGroupType.Consecutive)
    options.Training.gradientAccumulation(5)
    loader = poptorch.DataLoader(options, list(range(1000)), batch_size=7)
    assert loader.combinedBatchSize == 7 * 2 * 2 * 5


def test_types_narrow_on_the_way_in_and_out():
    class Types(torch.nn.Module):
        def forward(self, *tensors):
            seen.extend(tensor.dtype for tensor in tensors)
            return tensors

    seen: List[Any] = []
    inputs = [torch.ones(2, dtype=t) for t in (torch.float64, torch.bfloat16, torch.int64, torch.float16, torch.bool)]
    outputs = poptorch.inferenceModel(Types())(*inputs)
    assert seen[:2] == [torch.float32, torch.float32]
    assert [o.dtype for o in outputs] == [torch.float32, torch.float32, torch.int32, torch.float16, torch.bool]


def test_whole_numbers_wrap_at_32_bits():
    result = poptorch.inferenceModel(torch.nn.Identity())(torch.tensor([2**32 + 5]))
    assert result.tolist() == [5]


def test_empty_inputs_are_refused():
    with pytest.raises(poptorch.Error, match=r"Zero-sized tensors are unsupported \(Got shape \[0, 3\]"):
        poptorch.inferenceModel(torch.nn.Identity())(torch.zeros(0, 3))


def test_the_structure_of_the_outputs_is_forwards():
    class Nested(torch.nn.Module):
        def forward(self, x):
            return {"b": x + 1, "a": [x, (x * 2, "text", None)]}

    result = poptorch.inferenceModel(Nested())(torch.ones(1))
    assert list(result) == ["b", "a"]
    assert result["a"][1][0] == 2 and result["a"][1][1:] == ("text", None)
