"""Blocks, stages, IPUs and pipelines."""

import poptorch
import pytest
import torch


class FourLayers(torch.nn.Module):
    """Four layers, optionally each on an IPU of its own, and a loss on the last."""

    def __init__(self, ipus=None):
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(4)))
        for layer, ipu in zip(self.layers, ipus or []):
            poptorch.BeginBlock(layer, f"B{ipu}", ipu)

    def forward(self, x):
        return poptorch.identity_loss(self.layers(x), "mean")


def train(model, accumulation, strategy=None):
    options = poptorch.Options()
    options.Training.gradientAccumulation(accumulation)
    if strategy is not None:
        options.setExecutionStrategy(strategy)
    poptorch.trainingModel(model, options)(torch.ones(accumulation, 2))


@pytest.mark.parametrize("ipus, stages", [([0, 1, 2, 3], 7), ([0, 0, 1, 1], 3), ([0, 1, 0, 1], 7), (None, 1)])
def test_a_pipeline_needs_two_accumulation_steps_per_forward_stage_less_one(ipus, stages):
    train(FourLayers(ipus), stages)
    if stages > 1:
        with pytest.raises(poptorch.Error, match=rf"number of pipeline stages \({stages}\)"):
            train(FourLayers(ipus), stages - 1)


def test_sharded_execution_needs_no_accumulation():
    train(FourLayers([0, 1, 2, 3]), 1, poptorch.ShardedExecution())


def test_a_pipelined_inference_needs_one_iteration_per_stage():
    model = FourLayers([0, 1, 2, 3])
    poptorch.inferenceModel(model, poptorch.Options().deviceIterations(4))(torch.ones(4, 2))
    with pytest.raises(poptorch.Error, match=r"deviceIterations must be greater than .* \(4\)"):
        poptorch.inferenceModel(model, poptorch.Options().deviceIterations(3))(torch.ones(3, 2))


@pytest.mark.parametrize("last, count", [(2, 3), (4, 5)])
def test_on_hardware_the_ipus_must_be_a_power_of_two(monkeypatch, last, count):
    model = FourLayers([0, 1, last, last])
    options = poptorch.Options().setExecutionStrategy(poptorch.ShardedExecution())
    with pytest.raises(poptorch.Error, match=f"specifies the use of {count} IPUs"):
        poptorch.inferenceModel(model, options)(torch.ones(1, 2))
    poptorch.inferenceModel(model, options.clone().autoRoundNumIPUs(True))(torch.ones(1, 2))
    monkeypatch.setenv("POPTORCH_IPU_MODEL", "1")
    poptorch.inferenceModel(model, options)(torch.ones(1, 2))


def test_a_process_has_64_ipus():
    with pytest.raises(poptorch.Error, match=r"Too many IPUs requested \(128\)"):
        poptorch.inferenceModel(torch.nn.Linear(2, 2), poptorch.Options().replicationFactor(128))(torch.ones(128, 2))


def in_inference(forward, strategy, iterations=8):
    class Model(torch.nn.Module):
        def forward(self, x):
            return forward(x)

    options = poptorch.Options().deviceIterations(iterations).setExecutionStrategy(strategy)
    return poptorch.inferenceModel(Model(), options.autoRoundNumIPUs(True))(torch.ones(iterations))


def test_operations_after_a_block_belong_to_none():
    def forward(x):
        with poptorch.Block("A", ipu_id=0):
            x = x * 4
        return x * 2

    with pytest.raises(poptorch.Error, match="No active Block, all the ops must belong to a Block"):
        in_inference(forward, poptorch.PipelinedExecution())


def test_a_block_without_ipu_needs_another_auto_stage():
    def forward(x):
        with poptorch.Block("A"):
            return x * 4

    with pytest.raises(AssertionError, match="no IPU was specified for block A"):
        in_inference(forward, poptorch.PipelinedExecution())
    in_inference(forward, poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))


def test_a_block_that_no_stage_names_is_an_error():
    def forward(x):
        with poptorch.Block("C"):
            return x * 4

    with pytest.raises(AssertionError, match="Unknown Block 'C'"):
        in_inference(forward, poptorch.PipelinedExecution("A", ["B"]))


def test_the_ipu_of_a_stage_wins_over_the_blocks_own():
    def forward(x):
        with poptorch.Block("A", ipu_id=5):
            return x * 4

    executed = []
    strategy = poptorch.PipelinedExecution(poptorch.Stage("A").ipu(1))
    in_inference(forward, strategy, iterations=2)  # on IPU 5 it would be 6 IPUs; stages: 0 and 1
    executed.append(strategy.stage("A"))
    assert executed[0]._ipu == 1


def test_a_block_in_two_stages_is_an_error():
    with pytest.raises(AssertionError, match="A associated with more than one stage"):
        poptorch.PipelinedExecution("A", poptorch.Stage("B", "A"))


def test_begin_block_leaves_names_and_state_alone_and_takes_no_second_one():
    layer = torch.nn.Linear(2, 2)
    names = list(layer.state_dict())
    assert poptorch.BeginBlock(layer, "A", 0) is layer
    assert list(layer.state_dict()) == names
    with pytest.raises(poptorch.Error, match="module has already been assigned to a block"):
        poptorch.BeginBlock(layer, "B", 1)
    assert "BeginBlock(user_id=A, ipu_id=0)" in poptorch.module_repr(layer)
    poptorch.removeBlocks(layer)
    poptorch.BeginBlock(layer, "B", 1)


def test_begin_block_wraps_a_function():
    double = poptorch.BeginBlock(lambda x: 2 * x, "A", 0)
    assert double(torch.ones(1)) == 2


def test_annotations_do_nothing_on_the_host():
    @poptorch.BlockFunction("A", 7)
    def inside(x):
        with poptorch.Block("B"):
            poptorch.Block.start("C", 3)
            return x + 1

    assert inside(torch.ones(1)) == 2


def test_one_strategy_serves_several_models():
    strategy = poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement)
    for _ in range(2):
        train(FourLayers([0, 1, 2, 3]), 7, strategy)


def test_every_n_is_not_for_pipelines():
    options = poptorch.Options().deviceIterations(4).outputMode(poptorch.OutputMode.EveryN, 2)
    with pytest.raises(poptorch.Error, match="EVERYN is not valid for pipelined models"):
        poptorch.inferenceModel(FourLayers([0, 0, 1, 1]), options)(torch.ones(4, 2))


class Overlapped(torch.nn.Module):
    def forward(self, x):
        mode = poptorch.OverlapMode.OverlapAccumulationLoop
        return poptorch.set_overlap_for_output(poptorch.set_overlap_for_input(x, mode) + 1, mode)


def test_overlapped_transfers_need_sharding_io_tiles_and_all_or_the_sum_of_outputs():
    options = poptorch.Options().outputMode(poptorch.OutputMode.Final)
    for message, change in [
        (
            "not supported with poptorch.PipelinedExecution",
            lambda o: o.setExecutionStrategy(poptorch.ShardedExecution()),
        ),
        ("No IO tiles allocated", lambda o: o.TensorLocations.numIOTiles(32)),
        ("Unsupported output mode", lambda o: o.outputMode(poptorch.OutputMode.Sum)),
    ]:
        with pytest.raises(poptorch.Error, match=message):
            poptorch.inferenceModel(Overlapped(), options)(torch.ones(1))
        options = options.clone()
        change(options)
    assert poptorch.inferenceModel(Overlapped(), options)(torch.ones(1)) == 2


def test_phased_execution_needs_phases():
    with pytest.raises(AssertionError, match="specify the phases"):
        poptorch.SerialPhasedExecution()
    strategy = poptorch.SerialPhasedExecution(["A"], poptorch.Phase("B", "C"))
    strategy.phase(1).ipus(1)
    assert strategy.stage("C")._ipu == 1


MODE = poptorch.OverlapMode.OverlapAccumulationLoop


class InputUsedTwice(torch.nn.Module):
    def forward(self, x):
        return x + 1, poptorch.set_overlap_for_input(x, MODE)


class InputMarkInside(torch.nn.Module):
    def forward(self, x):
        return poptorch.set_overlap_for_input(x + 1, MODE)


class OutputTwice(torch.nn.Module):
    def forward(self, x):
        y = x + 1
        return y, poptorch.set_overlap_for_output(y, MODE)


class OutputMarkInside(torch.nn.Module):
    def forward(self, x):
        return poptorch.set_overlap_for_output(x + 1, MODE) * 2


@pytest.mark.parametrize(
    "model, message",
    [
        (InputUsedTwice(), "must be the only op applied to an input. This is not the case for input 0"),
        (InputMarkInside(), "set_overlap_for_input applied on a node which is not a tensor input to the model"),
        (OutputTwice(), "a tensor that is returned twice"),
        (OutputMarkInside(), "set_overlap_for_output applied on a node which is not a tensor output to the model"),
    ],
)
def test_overlap_is_for_inputs_and_outputs_alone(model, message):
    options = poptorch.Options().setExecutionStrategy(poptorch.ShardedExecution())
    options.TensorLocations.numIOTiles(32)
    with pytest.raises(poptorch.Error, match=message):
        poptorch.inferenceModel(model, options)(torch.ones(1))


def test_overlap_of_nested_outputs_and_reused_results():
    class Nested(torch.nn.Module):
        def forward(self, xs):
            xs = poptorch.set_overlap_for_input(xs, MODE)
            y = poptorch.set_overlap_for_output(xs[0] + xs[1], MODE)
            return {"sum": y, "double": y * 2}

    options = poptorch.Options().setExecutionStrategy(poptorch.ShardedExecution())
    options.TensorLocations.numIOTiles(32)
    outputs = poptorch.inferenceModel(Nested(), options)((torch.ones(1), torch.ones(1)))
    assert (outputs["sum"], outputs["double"]) == (2, 4)


def test_an_offline_target_needs_no_power_of_two_of_ipus():
    options = poptorch.Options().deviceIterations(3).useOfflineIpuTarget()
    poptorch.inferenceModel(FourLayers([0, 1, 2, 2]), options).compile(torch.ones(3, 2))
