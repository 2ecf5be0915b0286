"""Options: checks, freezing, copies, and what the compiler refuses."""

import copy
import json

import poptorch
import pytest
import torch

Mean, NoReduction = poptorch.ReductionType.Mean, poptorch.ReductionType.NoReduction


def compile_with(options):
    poptorch.inferenceModel(torch.nn.Identity(), options).compile(torch.ones(1))


ASSERTIONS = [
    lambda o: o.deviceIterations(2.0),
    lambda o: o.replicationFactor("2"),
    lambda o: o.set(nonsense=1),
    lambda o: o.randomSeed(1.5),
    lambda o: o.useIpuId("0"),
    lambda o: o.outputMode(2),
    lambda o: o.connectionType(0),
    lambda o: o.syncPattern(0),
    lambda o: o.setExecutionStrategy("pipelined"),
    lambda o: o.setAvailableMemoryProportion({"0": 0.5}),
    lambda o: o.Precision.enableFloatingPointExceptions(1),
    lambda o: o.TensorLocations.numIOTiles(31),
    lambda o: o.TensorLocations.numIOTiles(33),
    lambda o: o.TensorLocations.numIOTiles(194),
    lambda o: o.TensorLocations.setWeightLocation({}),
    lambda o: o._Popart.setPatterns([]),
    lambda o: poptorch.TensorLocationSettings().minElementsForOffChip(1.5),
]
VALUE_ERRORS = [
    lambda o: o.Jit.traceModel(True),
    lambda o: o.Precision.setPartialsType(torch.float64),
    lambda o: o.Training.accumulationAndReplicationReductionType(NoReduction),
    lambda o: o.Training.accumulationAndReplicationReductionType("Mean"),
    lambda o: o.inputReplicaGrouping(2, poptorch.CommGroupType.Consecutive),
    lambda o: o.replicationFactor(4).inputReplicaGrouping(3, poptorch.CommGroupType.Consecutive),
    lambda o: o.replicationFactor(4).inputReplicaGrouping(2, poptorch.CommGroupType.All),
]


@pytest.mark.parametrize("misuse", ASSERTIONS)
def test_values_of_a_wrong_type_or_range_are_assertion_errors(misuse):
    with pytest.raises(AssertionError):
        misuse(poptorch.Options())


@pytest.mark.parametrize("misuse", VALUE_ERRORS)
def test_values_that_make_no_sense_are_value_errors(misuse):
    with pytest.raises(ValueError):
        misuse(poptorch.Options())


def test_unknown_options_are_attribute_errors():
    options = poptorch.Options()
    with pytest.raises(AttributeError, match="nonsense"):
        _ = options.nonsense
    with pytest.raises(AttributeError, match="_nonsense"):
        options._nonsense = 1


USERS = [
    lambda o: poptorch.DataLoader(o, [1, 2]),
    lambda o: poptorch.inferenceModel(torch.nn.Identity(), o),
    lambda o: poptorch.trainingModel(torch.nn.Linear(1, 1), o),
]


@pytest.mark.parametrize("use", USERS)
def test_options_are_frozen_by_their_first_user_and_copies_are_not(use):
    options = poptorch.Options()
    use(options)
    for change in (
        lambda o: o.deviceIterations(2),
        lambda o: o.Training.gradientAccumulation(2),
        lambda o: o.Precision.setPartialsType(torch.half),
        lambda o: o.Distributed.configureProcessId(0, 1),
        lambda o: o._Popart.set("enableOutlining", True),
        lambda o: o.setExecutionStrategy(poptorch.ShardedExecution()),
    ):
        with pytest.raises(AttributeError, match="Can't modify frozen Options"):
            change(options)
        change(options.clone())
        change(copy.deepcopy(options))


def test_an_executor_keeps_a_copy():
    options = poptorch.Options()
    executor = poptorch.inferenceModel(torch.nn.Identity(), options)
    assert executor.options is not options
    assert options.defaultOutputMode() and not executor.options.defaultOutputMode()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("nonsense", True, "Unknown bool option nonsense"),
        ("enableOutlining", 1, "Unknown uint64 option enableOutlining"),
        ("autoRecomputation", True, "Unknown bool option autoRecomputation"),
        ("logDir", 1.5, "Unknown double option logDir"),
        ("enableOutlining", torch.ones(1), "Unknown value type"),
    ],
)
def test_an_unknown_compiler_option_is_an_error_when_compiling(key, value, message):
    options = poptorch.Options()
    options._Popart.set(key, value)
    with pytest.raises(poptorch.Error, match=message):
        compile_with(options)


def test_known_compiler_options_compile():
    options = poptorch.Options().enableStableNorm(True).modelName("name").enableProfiling("folder")
    options._Popart.set("autoRecomputation", 3).set("updatableNamedBuffers", []).set("outlineThreshold", 1.0)
    options.setAvailableMemoryProportion({"IPU0": 0.2}).maxRepeatLogs(None)
    options.TensorLocations.setOptimizerLocation(poptorch.TensorLocationSettings().useOnChipStorage(False))
    options.Precision.enableStochasticRounding(True)
    compile_with(options)


def test_partials_and_dithering_replace_each_others_convolution_options():
    options = poptorch.Options()
    options.Precision.setPartialsType(torch.half)
    options.Training.setConvolutionDithering(True)
    assert options._Popart.options["convolutionOptions"] == {"enableConvDithering": True}
    options.Precision.setPartialsType(torch.float)
    assert options._Popart.options["convolutionOptions"] == {"partialsType": "float"}


@pytest.mark.parametrize(
    "call",
    [
        lambda o: o.Jit.traceModel(False),
        lambda o: o.Precision.halfFloatCasting(poptorch.HalfFloatCastingBehavior.Default),
        lambda o: o.Precision.runningStatisticsAlwaysFloat(True),
    ],
)
def test_deprecated_options_only_warn(call, capfd):
    call(poptorch.Options())
    assert "[Deprecated]" in capfd.readouterr().err


def test_the_environment_sets_defaults(monkeypatch, tmp_path):
    values = {
        "deviceIterations": 2,
        "Training.gradientAccumulation": 3,
        "connectionType": "ConnectionType.OnDemand",
        "_Popart.set": ["autoRecomputation", 3],
    }
    monkeypatch.setenv("POPTORCH_DEFAULT_OPTIONS", json.dumps(values))
    monkeypatch.setenv("POPTORCH_CACHE_DIR", str(tmp_path / "cache"))
    options = poptorch.Options()
    assert (options.device_iterations, options.Training.gradient_accumulation) == (2, 3)
    assert options.connection_type == poptorch.ConnectionType.OnDemand
    assert options._Popart.options["autoRecomputation"] == 3
    assert options._Popart.options["cachePath"] == str(tmp_path / "cache")


def test_a_file_sets_options_line_by_line(tmp_path):
    file = tmp_path / "options.conf"
    file.write_text("deviceIterations(3) # three\n\n# a comment\n  replicationFactor(2)\n")
    options = poptorch.Options().loadFromFile(str(file))
    assert (options.device_iterations, options.replication_factor) == (3, 2)
    file.write_text("deviceIterations(1)\noutputMode(poptorch.OutputMode.All\n")
    with pytest.raises(poptorch.ConfigFileError, match=r"line 2 of options\.conf"):
        options.loadFromFile(str(file))


def test_openmpis_variables_say_which_process_this_is(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    distributed = poptorch.Options().Distributed
    assert (distributed.processId, distributed.numProcesses) == (3, 4)
    distributed.disable()
    assert (distributed.processId, distributed.numProcesses) == (0, 1)


def test_processes_that_are_not_connected_cannot_train():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x):
            return poptorch.identity_loss(x * self.weight, "sum")

    options = poptorch.Options()
    options.Distributed.configureProcessId(0, 2)
    with pytest.raises(poptorch.Error, match=r"2 processes, but they are not connected.*popdist\.run"):
        poptorch.trainingModel(Model(), options)(torch.ones(1))


def test_inference_takes_no_gradient_accumulation():
    options = poptorch.Options()
    options.Training.gradientAccumulation(2)
    with pytest.raises(poptorch.Error, match="gradientAccumulation to 1"):
        poptorch.inferenceModel(torch.nn.Identity(), options)


def test_synthetic_data_gives_results_of_the_right_form_only():
    options = poptorch.Options().enableSyntheticData(True).deviceIterations(2)
    result = poptorch.inferenceModel(torch.nn.Linear(3, 5), options)(torch.ones(4, 3))
    assert result.shape == (4, 5) and not result.any()


@pytest.mark.parametrize("level", ["TRACE", "DEBUG", "INFO", "WARN", "ERR", "OFF", 1])
def test_log_levels_have_names_and_numbers(level):
    poptorch.setLogLevel(level)
    poptorch.setLogLevel("WARN")
    for wrong in ("LOUD", 5):
        with pytest.raises(ValueError):
            poptorch.setLogLevel(wrong)
