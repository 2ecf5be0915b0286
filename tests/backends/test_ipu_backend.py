"""The IPU backend on the emulator: the weights of the CPU backend, whatever the batch arithmetic and the options."""

import logging
from typing import Any, Dict, List, NamedTuple

import pytest
import torch

from backends import DeviceError, choose_device
from backends.ipu.step import use_plain_operations
from configs import ConfigError, load_config
from experiment.network import build_network
from experiment.prepare import prepare
from experiment.run import PlannedRun, Run
from models.cost import measure_cost
from normact import norm_act
from normact.norms import GroupNorm
from training.nonfinite import NonFiniteLossError

SMALL = ["data.num_train_images=96", "data.num_eval_images=37", "batch.global_batch_size=32", "norm.kernel=reference"]
PIPELINE = [
    "ipu.ipus=4",
    "ipu.splits=[stages.1.0]",
    "batch.micro_batch_size=4",
]  # 2 replicas x 2 stages, accumulation 4
BATCH_NORM = ["norm.name=batch", "norm.proxy=false", "norm.num_groups=null", "batch.norm_batch_size=8"]
LAMB = ["optimizer.name=lamb", "optimizer.momentum=null", "optimizer.betas=[0.9, 0.99]", "optimizer.eps=1e-6"]


class Trained(NamedTuple):
    """What two weight updates left."""

    run: Run
    losses: List[float]
    state: Dict[str, Any]

    @property
    def model(self) -> Dict[str, torch.Tensor]:
        return self.state["model"]


def prepared(device: str, *overrides: str) -> Run:
    config = load_config("generated_smoke", [*SMALL, *overrides], [("--device", "device.name", device)])
    return prepare("test", config, choose_device(config.device, config.ipu)).start()


def trained(device: str, *overrides: str, steps: int = 2) -> Trained:
    run = prepared(device, *overrides)
    losses = update(run, 0, steps)
    return Trained(run, losses, run.session.state())


def update(run: Run, first: int, stop: int) -> List[float]:
    losses: List[float] = []
    step = first
    for batch in run.session.training_batches(run.data.train, 0, first, 0):
        if step == stop:
            break
        losses.append(float(run.session.train_step(batch, step, 0.1).loss_sum))
        step += run.plan.device_iterations
    return losses


def evaluated(run: Run) -> Any:
    sums = [run.session.eval_step(batch) for batch in run.session.evaluation_batches(run.data.evaluation, 0)]
    total = run.session.total(sum(sums[1:], sums[0]))
    return total.means(), total.images


def assert_same_weights(first: Dict[str, torch.Tensor], second: Dict[str, torch.Tensor]) -> None:
    """float32 sums in another order differ by 1e-7; where that moves a value across a ReLU's kink, by about 1e-5."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")  # type: ignore[misc]


@pytest.mark.parametrize(
    "meaning",
    [
        [],
        ["norm.grouping=strided"],
        ["optimizer.nesterov=true"],
        ["optimizer.momentum=0.0"],
        ["regularization.mixup_alpha=0.2", "regularization.cutmix_alpha=1.0"],
        ["optimizer.name=rmsprop", "optimizer.square_decay=0.9", "optimizer.eps=1e-3", "optimizer.learning_rate=0.01"],
        ["optimizer.name=adamw", "optimizer.momentum=null", "optimizer.betas=[0.9, 0.99]", "optimizer.eps=1e-3"],
    ],
    ids=lambda meaning: "+".join(meaning) or "plain",
)
def test_a_pipeline_of_replicas_gives_the_weights_and_the_state_of_the_cpu(meaning: List[str]) -> None:
    cpu, ipu = trained("cpu", *meaning), trained("ipu_emulator", *PIPELINE, *meaning)
    assert str(ipu.run.plan).startswith(
        "global_batch_size 32 = micro_batch_size 4 x gradient_accumulation 4 x replicas 2"
    )
    assert ipu.losses == pytest.approx(cpu.losses, rel=1e-5)
    assert_same_weights(cpu.model, ipu.model)
    left, right = (one.state["optimizer"] for one in (cpu, ipu))
    assert left["param_groups"] == right["param_groups"]
    kept = {index: {k: v for k, v in values.items() if v is not None} for index, values in left["state"].items()}
    kept = {index: values for index, values in kept.items() if values}
    assert kept.keys() == right["state"].keys()
    for index, values in kept.items():
        for name, value in values.items():
            torch.testing.assert_close(right["state"][index][name], torch.as_tensor(value), rtol=1e-2, atol=2e-4)


def test_batch_norm_of_a_micro_batch_gives_the_weights_and_statistics_of_the_cpu() -> None:
    one = ["ipu.ipus=1", "ipu.splits=[]", "batch.micro_batch_size=8"]  # a second replica would have its own statistics
    cpu, ipu = trained("cpu", *BATCH_NORM, *one), trained("ipu_emulator", *BATCH_NORM, *one)
    assert_same_weights(cpu.model, ipu.model)


@pytest.mark.parametrize("options", [["ipu.loss_scaling=128.0"], ["ipu.device_iterations=2"], ["ipu.io_tiles=32"]])
def test_how_it_is_executed_does_not_change_the_weights(options: List[str]) -> None:
    shape = ["ipu.ipus=2", "ipu.splits=[]", "batch.micro_batch_size=8", "data.num_train_images=64"]
    assert_same_weights(trained("cpu", *shape).model, trained("ipu_emulator", *shape, *options).model)


def test_each_weight_update_of_a_call_mixes_images_with_its_own_draws() -> None:
    shape = ["ipu.ipus=2", "ipu.splits=[]", "batch.micro_batch_size=8", "data.num_train_images=64"]
    shape += ["regularization.mixup_alpha=0.2", "regularization.cutmix_alpha=1.0"]
    assert_same_weights(trained("cpu", *shape).model, trained("ipu_emulator", *shape, "ipu.device_iterations=2").model)


@pytest.mark.parametrize(("precision", "bound"), [("16.32", 0.005), ("16.16", 0.02)])
def test_float16_trains_close_to_float32_and_saves_float32(precision: str, bound: float) -> None:
    exact = trained("cpu")
    half = trained("ipu_emulator", *PIPELINE, f'ipu.precision="{precision}"', "ipu.loss_scaling=128.0")
    assert half.losses == pytest.approx(exact.losses, rel=bound)
    assert {tensor.dtype for tensor in half.model.values()} == {torch.float32}
    name = "stem.conv.weight"
    # float16 has 11 bits: activations are off by 5e-4, weights of 16 bits by as much again.
    difference = float((half.model[name] - exact.model[name]).norm() / exact.model[name].norm())
    assert 0 < difference < bound


def test_evaluation_counts_every_image_once_and_follows_the_training() -> None:
    cpu, ipu = prepared("cpu"), prepared("ipu_emulator", *PIPELINE)
    for first in (0, 1):  # evaluation takes turns with training on the same IPUs
        for run in (cpu, ipu):
            update(run, first, first + 1)
        (left, images), (right, images_on_ipu) = evaluated(cpu), evaluated(ipu)
        assert images == images_on_ipu == 37
        assert right.loss == pytest.approx(left.loss, rel=1e-4)
        assert right.top1 == left.top1
    assert_same_weights(cpu.session.state()["model"], ipu.session.state()["model"])


def test_evaluating_with_other_weights_leaves_the_trained_ones() -> None:
    run = prepared("ipu_emulator", *PIPELINE)
    start = run.session.state()["model"]
    fresh = evaluated(run)
    update(run, 0, 1)
    after = run.session.state()["model"]
    changed = evaluated(run)
    with run.session.evaluating_with(start):
        assert evaluated(run) == fresh != changed
    assert evaluated(run) == changed
    assert all(torch.equal(tensor, after[name]) for name, tensor in run.session.weights().items())


@pytest.mark.parametrize("meaning", [[], ["regularization.mixup_alpha=0.2"]], ids=["plain", "mixup"])
def test_a_run_moves_from_cpu_to_ipu_and_back_without_changing_its_weights(meaning: List[str]) -> None:
    unmoved = trained("cpu", *meaning, steps=3)
    state = trained("cpu", *meaning, steps=1).state
    for step, device in ((1, "ipu_emulator"), (2, "cpu")):
        run = prepared(device, *([*PIPELINE, "ipu.loss_scaling=64.0"] if device != "cpu" else []), *meaning)
        run.session.load_state(state)
        update(run, step, step + 1)
        state = run.session.state()
    assert_same_weights(unmoved.model, state["model"])
    for index, kept in unmoved.state["optimizer"]["state"].items():
        torch.testing.assert_close(
            state["optimizer"]["state"][index]["momentum_buffer"], kept["momentum_buffer"], rtol=1e-2, atol=2e-4
        )


def test_continuing_on_the_emulator_is_bit_identical() -> None:
    straight = trained("ipu_emulator", *PIPELINE, steps=3)
    first = trained("ipu_emulator", *PIPELINE, steps=2)
    run = prepared("ipu_emulator", *PIPELINE)
    run.session.load_state(first.state)
    assert run.session.state()["optimizer"]["state"].keys() == first.state["optimizer"]["state"].keys()
    update(run, 2, 3)
    state = run.session.state()
    assert all(torch.equal(tensor, state["model"][name]) for name, tensor in straight.model.items())


def test_a_non_finite_loss_stops_the_run_and_no_checkpoint_is_made_of_it() -> None:
    run = prepared("ipu_emulator", *PIPELINE)
    batches = iter(run.session.training_batches(run.data.train, 0, 0, 0))
    run.session.train_step(next(batches), 0, 1e30)
    with pytest.raises(NonFiniteLossError, match=r"step 1: .*No checkpoint was written"):
        run.session.train_step(next(batches), 1, 1e30)
    with pytest.raises(NonFiniteLossError):
        run.session.state()


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (
            ["ipu.splits=[stages.1.1]"],
            "ipu.splits 'stages.1.1' is not a module of this network; the nearest is stages.1",
        ),
        (["ipu.splits=[]", "ipu.checkpoints=[stage.0]"], "ipu.checkpoints 'stage.0' is not a module"),
        (["ipu.splits=[stages.1.0, stages.2.0]"], "ipu.ipus 4 is not an integer x 3 stages"),
        (["ipu.splits=[stages.1.0]", "batch.micro_batch_size=8"], "gradient_accumulation 2 with 2 pipeline stages"),
        (["ipu.splits=[stages.1.0]", "ipu.io_tiles=32", "batch.micro_batch_size=2"], "without a pipeline only"),
        (["ipu.ipus=64"], "global_batch_size 32 on 64 IPUs cannot be cut"),
        ([*BATCH_NORM, "ipu.splits=[]", "batch.micro_batch_size=4"], "replicas cannot share statistics here"),
        (["norm.kernel=fused"], "belong to the kernels of CPUs and GPUs|torch .* is older"),  # torch 2.0.1 has none
    ],
)
def test_what_cannot_be_honoured_is_refused_before_compiling(overrides: List[str], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        prepared("ipu_emulator", *overrides)


def test_an_optimizer_of_another_formula_is_refused() -> None:
    with pytest.raises(DeviceError, match="no optimizer with the formula of Lamb"):
        prepared("ipu_emulator", *LAMB)


def test_device_iterations_that_do_not_divide_an_epoch_are_refused_with_a_way_out() -> None:
    options = ["ipu.splits=[]", "ipu.device_iterations=2"]
    with pytest.raises(ConfigError, match=r"device_iterations 2 does not divide the 3 weight updates .* use 1"):
        prepared("ipu_emulator", *options)
    run = prepared("ipu_emulator", *options, "data.num_train_images=128")
    with pytest.raises(ConfigError, match=r"does not divide the 1 weight updates that are left of this epoch's 4"):
        run.session.training_batches(run.data.train, 0, 3, 0)  # where a run on another device was stopped


def test_the_options_of_the_configuration_reach_poptorch(tmp_path: Any) -> None:
    options = ["ipu.optimizer_off_chip=true", "ipu.optimizer_sharded=true", "ipu.available_memory_proportion=0.25"]
    options += ['ipu.precision="16.32"', "ipu.partials=half", "ipu.stochastic_rounding=true", "ipu.loss_scaling=64.0"]
    options += [f"ipu.executable_cache={tmp_path}/cache", f"ipu.profile_dir={tmp_path}/profile"]
    run = trained("ipu_emulator", *PIPELINE, *options, "norm.grouping=strided", steps=1).run
    session: Any = run.session
    told, popart = session._training.options, session._training.options._Popart.options
    assert (told.replication_factor, told.device_iterations, told.Training.gradient_accumulation) == (2, 1, 4)
    assert told.output_mode.name == "Sum" if hasattr(told.output_mode, "name") else told.output_mode == 3
    assert told.Training.accumulation_and_replication_reduction_type.name == "Mean"
    assert told.available_memory_proportion == {0: 0.25, 1: 0.25}
    assert told.TensorLocations.location_optimizer == {"onChip": 0, "useReplicatedTensorSharding": 1}
    assert popart["partialsTypeMatMuls"] == "half"
    assert (popart["enableStochasticRounding"], popart["groupNormStridedChannelGrouping"]) == (True, True)
    assert popart["cachePath"] == f"{tmp_path}/cache"
    assert popart["engineOptions"]["autoReport.directory"] == f"{tmp_path}/profile"
    assert session._optimizer.device.loss_scaling == 64.0
    evaluated(run)
    assert (session._inference.options.device_iterations, session._inference.options.replication_factor) == (4, 2)


def test_synthetic_data_trains_on_no_image_and_still_counts_them() -> None:
    real, synthetic = (trained("ipu_emulator", *PIPELINE, f"ipu.synthetic_data={word}") for word in ("false", "true"))
    session: Any = synthetic.run.session
    assert session._training.options._Popart.options["syntheticDataMode"] > 0
    assert synthetic.losses == [0.0, 0.0]
    name = "classifier.weight"
    assert not torch.equal(synthetic.model[name], real.model[name])
    means, images = evaluated(synthetic.run)
    assert (means.top1, images) == (0.0, 37)


def test_the_learning_rate_changes_without_compiling_again() -> None:
    run = prepared("ipu_emulator", *PIPELINE)
    session: Any = run.session
    batches = iter(session.training_batches(run.data.train, 0, 0, 0))
    session.train_step(next(batches), 0, 0.1)
    program, before = session._training._program, session.state()["model"]
    session.train_step(next(batches), 1, 0.0)
    assert session._training._program is program
    assert all(torch.equal(tensor, before[name]) for name, tensor in session.state()["model"].items())


class Recorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: List[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def test_what_poptorch_prints_is_not_printed_again_by_the_program(request: pytest.FixtureRequest) -> None:
    root, program = logging.getLogger(), Recorder()
    root.addHandler(program)
    request.addfinalizer(lambda: root.removeHandler(program))
    prepared("ipu_emulator", *PIPELINE)
    logging.getLogger("poptorch::python").warning("PopTorch has a handler of its own")
    root.warning("a message of the program")
    assert program.messages == ["a message of the program"]


def test_a_dry_run_plans_stages_without_poptorch() -> None:
    config = load_config("generated_smoke", ["ipu.ipus=16"], [("--device", "device.name", "ipu")])
    lines = prepare("test", config, choose_device(config.device, config.ipu, dry_run=True)).placement.details
    assert lines["ipus"].startswith("16 mk2 = 16 replicas x 1 stage; proposed splits: ")
    assert "images/s expected" in lines["planner"]


def dry_run(*overrides: str) -> PlannedRun:
    config = load_config("generated_smoke", [*SMALL, *overrides], [("--device", "device.name", "ipu")])
    return prepare("test", config, choose_device(config.device, config.ipu, dry_run=True), dry_run=True)


@pytest.mark.parametrize(
    ("overrides", "error", "part"),
    [
        (LAMB, DeviceError, "no optimizer with the formula of Lamb"),
        (["ipu.splits=[]", "ipu.device_iterations=2"], ConfigError, "does not divide the 3 weight updates .* use 1"),
        (["ipu.splits=[stages.1.0]", "batch.micro_batch_size=8"], ConfigError, "accumulation 2 with 2 pipeline stages"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(overrides: List[str], error: type, part: str) -> None:
    with pytest.raises(error, match=part):
        dry_run(*overrides)


@pytest.mark.parametrize("device", ["ipu", "ipu_emulator"])
def test_a_network_of_both_groupings_is_refused_by_the_dry_run_too(device: str, monkeypatch: Any) -> None:
    def mixed(*given: Any) -> Any:
        factory, network = build_network(*given)
        norms = [module for module in network.modules() if isinstance(module, GroupNorm)]
        norms[-1].grouping = "strided" if norms[-1].grouping == "contiguous" else "contiguous"
        return factory, network

    monkeypatch.setattr("experiment.prepare.build_network", mixed)
    with pytest.raises(ConfigError, match="group norms of both groupings in one network"):
        dry_run() if device == "ipu" else prepared(device)


def test_what_is_told_of_a_network_for_ipus_is_of_the_operations_that_run_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(norm_act, "_logged", set())  # each reason is logged once
    config = load_config("generated_smoke", ["ipu.ipus=16"], [("--device", "device.name", "ipu")])
    with caplog.at_level(logging.INFO):
        run = prepare("test", config, choose_device(config.device, config.ipu, dry_run=True))
    assert "fused kernels" not in caplog.text
    _, plain = build_network(config, run.data)
    use_plain_operations(plain)
    assert run.cost == measure_cost(plain, run.data.image_size, in_channels=run.data.channels)
