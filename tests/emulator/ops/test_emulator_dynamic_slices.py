"""Slices whose start is a tensor: what is refused, and what the device does with a start outside of the tensor."""

import poptorch
import pytest
import torch


class Slice(torch.nn.Module):
    def __init__(self, size, step=1):
        super().__init__()
        self.size, self.step = size, step

    def forward(self, x, start):
        return poptorch.dynamic_slice(x, 0, start, self.size, self.step)


class Update(torch.nn.Module):
    def forward(self, x, start):
        return poptorch.dynamic_update(x, torch.full((2,), -1.0), 0, start, 2)


def test_a_model_compiled_with_one_start_runs_with_another():
    model = poptorch.inferenceModel(Slice(4))
    model.compile(torch.arange(8.0), torch.tensor([100]))
    assert model(torch.arange(8.0), torch.tensor([3])).tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("start", "expected"), [(2, [2, 3, 4, 5]), (6, [6, 7, 0, 1]), (8, [0, 1, 2, 3]), (-1, [0, 1, 2, 3])]
)
def test_a_slice_goes_on_at_the_first_row_and_one_from_outside_begins_there(start, expected):
    assert poptorch.inferenceModel(Slice(4))(torch.arange(8.0), torch.tensor([start])).tolist() == expected


@pytest.mark.parametrize(
    ("start", "expected"), [(1, [0, -1, -1, 3]), (3, [-1, 1, 2, -1]), (4, [-1, -1, 2, 3]), (-7, [-1, -1, 2, 3])]
)
def test_an_update_does_the_same(start, expected):
    assert poptorch.inferenceModel(Update())(torch.arange(4.0), torch.tensor([start])).tolist() == expected


def test_a_step_leaves_rows_out():
    assert poptorch.inferenceModel(Slice(4, 3))(torch.arange(8.0), torch.tensor([1])).tolist() == [1, 4]


@pytest.mark.parametrize(
    ("size", "step", "message"),
    [
        (0, 1, "The start and end of a slice must be different."),
        (-2, 1, "end less than the start is not supported."),
        (3, 1, r"The size of the slice \(3\) must be a factor of the slicing dimension \(8\)\."),
        (4, 0, "Slicing step must be at least 1"),
    ],
)
def test_what_the_handler_refuses_is_refused(size, step, message):
    with pytest.raises(poptorch.Error, match=message):
        poptorch.inferenceModel(Slice(size, step))(torch.arange(8.0), torch.tensor([1]))


def test_a_slice_of_a_weight_trains_its_rows_alone():
    class Trained(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4))

        def forward(self, start):
            return poptorch.identity_loss(poptorch.dynamic_slice(self.weight, 0, start, 2, 1), "sum")

    model = Trained()
    trainer = poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=1.0))
    trainer(torch.tensor([1]))
    assert model.weight.tolist() == [1, 0, 0, 1]


def test_on_the_host_they_are_slices_of_torch():
    x = torch.arange(8.0).reshape(2, 4)
    assert poptorch.dynamic_slice(x, -1, torch.tensor([1]), 3, 2).tolist() == x[:, 1:4:2].tolist()
    assert poptorch.dynamic_slice(x, 0, torch.tensor(1), 5, 1).tolist() == x[1:6].tolist()
    updated = poptorch.dynamic_update(x, torch.zeros(2, 2), 1, torch.tensor([2]), 2)
    assert updated.tolist() == [[0, 1, 0, 0], [4, 5, 0, 0]] and x[0, 2] == 2


def test_an_update_of_another_type_is_told_in_the_types_of_the_device():
    class Mixed(torch.nn.Module):
        def forward(self, x, counts):
            return poptorch.dynamic_update(x, counts, 0, torch.tensor([0]), 1)

    with pytest.raises(poptorch.Error, match=r"must have same dtype. \(torch.float32 vs torch.int32\)"):
        poptorch.inferenceModel(Mixed())(torch.ones(4), torch.tensor([1]))
