"""What surrounds a program: torch's inference mode, the IPU Model, and what libraries reach for in PopTorch."""

import poptorch
import pytest
import torch
from poptorch._impl import _restoreWrapperIfNecessary, isWrapped, rewrapModelIfNecessary, unwrapModelIfNecessary
from poptorch._poplar_executor import PoplarExecutor
from poptorch._utils import combine_batch_tensors_gen, combined_batch_generator
from poptorch.poptorch_core import TestErrorType, _throwTestError


class Normed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))

    def forward(self, x):
        y = self.layers(x)
        return y, poptorch.identity_loss(y * y, "mean")


def trained(model):
    return poptorch.trainingModel(model, optimizer=poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))


def test_inference_mode_changes_nothing_of_what_an_executor_does():
    x = torch.randn(4, 3)
    outcomes = []
    for enabled in (False, True):
        model = Normed()
        trainer = trained(model)
        with torch.inference_mode(enabled):
            inputs = x.clone()
            trainer(inputs)
            loss = trainer(inputs)[1]
            follower = poptorch.inferenceModel(model.eval())
            output = follower(inputs)[0]
            state = {name: value.clone() for name, value in trainer.state_dict().items()}
        again = follower(x)[0], trainer(x)[1]  # what was made inside is of use outside
        outcomes.append([loss, output, *again, *state.values()])
    for plain, inside in zip(*outcomes):
        assert torch.equal(plain, inside)


def test_weights_made_in_inference_mode_are_read_and_written_back():
    with torch.inference_mode():
        model = Normed()
    before = model.layers[0].weight.clone()
    executor = trained(model)
    executor(torch.randn(4, 3))
    assert not torch.equal(model.layers[0].weight, before)


def test_an_input_made_in_inference_mode_can_change_in_place():
    class Adds(torch.nn.Module):
        def forward(self, x):
            x += 1
            return x * 2

    with torch.inference_mode():
        x = torch.ones(2)
    assert poptorch.inferenceModel(Adds())(x).tolist() == [4, 4]
    assert x.tolist() == [2, 2]


@pytest.mark.parametrize("training", [True, False])
def test_the_ipu_model_runs_one_replica(training):
    options = poptorch.Options().useIpuModel(True).replicationFactor(2)
    make = poptorch.trainingModel if training else poptorch.inferenceModel
    with pytest.raises(poptorch.Error, match="Replicated top level graphs are not supported on the IPU model"):
        make(Normed(), options)(torch.randn(8, 3))
    make(Normed(), poptorch.Options().useIpuModel(True))(torch.randn(4, 3))


def test_the_ipu_model_is_no_part_of_several_processes():
    options = poptorch.Options().useIpuModel(True)
    options.Distributed.configureProcessId(0, 2)
    with pytest.raises(poptorch.Error, match="Only IPU Hardware devices supported"):
        poptorch.inferenceModel(Normed(), options)(torch.randn(4, 3))


def test_a_model_can_be_unwrapped_for_a_while():
    model = Normed()
    executor = trained(model)
    assert isinstance(executor, PoplarExecutor) and isWrapped(model)
    executor(torch.randn(4, 3))
    unwrapModelIfNecessary(model)
    assert type(model) is Normed and type(model.layers[0].weight) is torch.nn.Parameter
    assert type(model.layers[1].running_mean) is torch.Tensor
    assert executor._dirty_host_weights
    stale = model.layers[0].weight.clone()
    rewrapModelIfNecessary(model)
    assert isWrapped(model) and isWrapped(model.layers[0].weight) and isWrapped(model.layers[1].running_mean)
    assert not torch.equal(model.layers[0].weight, stale)  # fetched now
    untouched = torch.nn.Linear(1, 1)
    assert _restoreWrapperIfNecessary(untouched) is untouched and not isWrapped(untouched)


def test_batches_are_joined_tensor_by_tensor():
    first, second = [torch.zeros(2, 3), torch.ones(2)], [torch.ones(1, 3), torch.zeros(1)]
    features, labels = combine_batch_tensors_gen([first, second])
    assert features.tolist() == [[0] * 3, [0] * 3, [1] * 3] and labels.tolist() == [1, 1, 0]
    batches = [{"x": torch.tensor([value])} for value in range(5)]
    for drop_last, expected in ((True, [[0, 1], [2, 3]]), (False, [[0, 1], [2, 3], [4]])):
        joined = combined_batch_generator(iter(batches), 2, drop_last=drop_last)
        assert [batch["x"].tolist() for batch in joined] == expected


KINDS = {
    TestErrorType.PoplarRecoverableFullReset: (poptorch.RecoverableError, "poplar_recoverable_runtime_error"),
    TestErrorType.PoplarUnrecoverable: (poptorch.UnrecoverableError, "poplar_unrecoverable_runtime_error"),
    TestErrorType.PoplarLinkError: (poptorch.Error, "poplar_link_error"),
    TestErrorType.Poptorch: (poptorch.Error, "poptorch_cpp_error"),
}


@pytest.mark.parametrize("kind", TestErrorType)
def test_a_program_can_have_each_kind_of_error_to_try_itself_on(kind):
    error_class, name = KINDS.get(kind, (poptorch.Error, ""))
    with pytest.raises(error_class) as raised:
        _throwTestError(kind)
    error = raised.value
    assert type(error) is error_class and name in error.type and error.type in str(error)
    assert "throwTestError::topLevel" in error.location and "throwTestError::topLevel" not in error.message
    if isinstance(error, poptorch.RecoverableError):
        assert error.recovery_action == "FULL_RESET"


def test_lists_of_numbers_from_tensors_become_tensors_after_a_model_has_run():
    """As programs collect predictions."""
    found = poptorch.inferenceModel(torch.nn.Identity())(torch.eye(3)).max(dim=1).indices
    assert torch.tensor(list(found)).tolist() == [0, 1, 2]
    assert torch.tensor([torch.nn.Parameter(torch.tensor(1.0)), torch.tensor(2.0)]).tolist() == [1, 2]
