"""Libraries may exchange functions for the time that a model is on the device, as PopTorch Geometric does."""

import types

import poptorch._poplar_executor
import pytest
import torch
from poptorch._poplar_executor import _OverwriteContextManager

OPERATIONS = types.SimpleNamespace(step=lambda x: x + 1)


class OnTheDevice:
    def replace(self):
        self.own, OPERATIONS.step = OPERATIONS.step, lambda x: x + 10

    def restore(self):
        OPERATIONS.step = self.own


class Model(torch.nn.Module):
    def forward(self, x):
        return OPERATIONS.step(x)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(_OverwriteContextManager, "_subsitution_manager_types", [])
    for _ in range(2):  # a second time changes nothing
        _OverwriteContextManager.registerSubsitutionManager(OnTheDevice)


def test_a_function_is_another_there_and_itself_again_outside():
    assert poptorch.inferenceModel(Model())(torch.zeros(1)).tolist() == [10]
    assert Model()(torch.zeros(1)).tolist() == [1]


def test_it_is_itself_again_after_an_error():
    class Failing(torch.nn.Module):
        def forward(self, x):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        poptorch.inferenceModel(Failing())(torch.zeros(1))
    assert OPERATIONS.step(0) == 1
