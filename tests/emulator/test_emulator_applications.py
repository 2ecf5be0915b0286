"""What applications reach for besides poptorch's documented names: popart, torch.ops.poptorch, an executor's inside."""

import popart
import poptorch
import pytest
import torch

# Values of PopART's headers, as the compiler's options take them.
VALUES = [
    (popart.SyntheticDataMode.RandomNormal, 2),
    (popart.RecomputationType.NoRecompute, 0),
    (popart.RecomputationType.Standard, 1),
    (popart.RecomputationType.Pipeline, 3),
    (popart.RecomputationType.RecomputeAll, 4),
    (popart.AccumulateOuterFragmentSchedule.OverlapMemoryOptimized, 3),
    (popart.SubgraphCopyingStrategy.JustInTime, 1),
    (popart.VirtualGraphMode.Manual, 1),
    (popart.BatchSerializationBatchSchedule.Isomorphic, 1),
    (popart.BatchSerializationTransformContext.Backward, 1),
    (popart.MergeVarUpdateType.AutoTight, 3),
    (popart.TensorStorage.OffChip, 1),
]


@pytest.mark.parametrize(("member", "value"), VALUES, ids=str)
def test_members_of_popart_are_numbers_by_int_alone(member, value):
    assert int(member) == value
    assert not isinstance(member, int)


def test_poparts_names_are_the_ones_of_poptorch_where_both_have_them():
    for name in ("SyncPattern", "ReductionType"):
        ours = {member.name: int(member) for member in getattr(popart, name)}
        assert ours == {member.name: member.value for member in getattr(poptorch, name)}


def test_options_of_popart_are_integers():
    options = poptorch.Options()
    options._Popart.set("subgraphCopyingStrategy", int(popart.SubgraphCopyingStrategy.JustInTime))
    options._Popart.set("autoRecomputation", int(popart.RecomputationType.Standard))
    options.enableSyntheticData(int(popart.SyntheticDataMode.RandomNormal))
    poptorch.inferenceModel(torch.nn.Identity(), options).compile(torch.ones(1))
    options = poptorch.Options()
    options._Popart.set("autoRecomputation", popart.RecomputationType.Standard)
    with pytest.raises(poptorch.Error, match="Unknown value type"):
        poptorch.inferenceModel(torch.nn.Identity(), options).compile(torch.ones(1))


def test_programs_for_popart_itself_are_told_that_they_need_the_sdk():
    with pytest.raises(AttributeError, match=r"popart\.Builder: the emulator has PopART's enumerations alone"):
        popart.Builder()


class Scoped(torch.nn.Module):
    """Its input times three, inside a scope and through half precision."""

    def forward(self, x):
        torch.ops.poptorch.push_name_scope("outer")
        y = torch.ops.poptorch.internal_cast(x * 3, "FLOAT16")
        torch.ops.poptorch.pop_name_scope()
        return torch.ops.poptorch.internal_cast(y, "FLOAT") * 1


def test_the_operators_of_torch_ops_name_and_cast_on_the_device(capfd):
    x = torch.tensor([0.1, 1 / 3, 0.7, 11.3])
    model = poptorch.inferenceModel(Scoped(), poptorch.Options().deviceIterations(4))
    rounded = (x * 3).half().float()
    for _ in range(4):  # the last calls run the micro steps together
        assert torch.equal(model(x), rounded)
    assert not torch.equal(rounded, x * 3)
    assert model.getTensorNames()[:5] == ["input", "outer/Mul:0", "outer/InternalCast:0", "InternalCast:0", "Mul:0"]
    assert "performance drop" not in capfd.readouterr().err  # torch's word for taking micro steps apart again


def test_the_operators_of_torch_ops_do_nothing_on_the_host():
    x = torch.tensor([0.1])
    assert torch.equal(Scoped()(x), x * 3)
    assert torch.ops.poptorch.internal_cast(x.half(), "FLOAT16").dtype == torch.float32


def test_gradients_pass_through_the_cast():
    class Cast(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor([2.0]))

        def forward(self, x):
            return poptorch.identity_loss(torch.ops.poptorch.internal_cast(self.w * x, "FLOAT16").float(), "sum")

    module = Cast()
    trainer = poptorch.trainingModel(module, optimizer=torch.optim.SGD(module.parameters(), lr=0.5))
    trainer(torch.tensor([3.0]))
    assert module.w.item() == 2 - 0.5 * 3


def test_a_cast_to_a_type_that_is_none_of_the_devices_is_an_error():
    class Cast(torch.nn.Module):
        def forward(self, x):
            return torch.ops.poptorch.internal_cast(x, "half")

    with pytest.raises(poptorch.Error, match="internal_cast to 'half': the device casts to FLOAT, FLOAT16"):
        poptorch.inferenceModel(Cast())(torch.ones(1))


def test_an_executor_has_an_executable_from_compiling_to_destroying():
    model = poptorch.inferenceModel(torch.nn.Identity())
    assert model._executable is None
    model.compile(torch.ones(1))
    assert model._executable
    model.destroy()
    assert model._executable is None


def test_an_executor_knows_the_programs_optimizer():
    module = torch.nn.Linear(1, 1)
    first, second = (torch.optim.SGD(module.parameters(), lr=rate) for rate in (0.1, 0.2))
    trainer = poptorch.trainingModel(module, optimizer=first)
    assert trainer._optimizer is first
    trainer.setOptimizer(second)
    assert trainer._optimizer is second
    assert poptorch.inferenceModel(torch.nn.Identity())._optimizer is None
