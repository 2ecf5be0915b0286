"""What section `ipu` says to PopTorch: options of the weight update, and others by PopART's names."""

import sys
from typing import Any, Dict, List

import pytest

from backends import choose_device
from backends.ipu.popart_options import OPTIONS, TAKEN, check_popart_options
from backends.ipu.sdk import EMULATOR
from configs import ConfigError, load_config
from experiment.prepare import prepare

SMALL = ["data.num_train_images=64", "data.num_eval_images=8", "batch.global_batch_size=32", "norm.kernel=reference"]
PLAIN = ["ipu.ipus=2", "ipu.splits=[]", "batch.micro_batch_size=4"]


def prepared(device: str, *overrides: str, dry_run: bool = False) -> Any:
    config = load_config("generated_smoke", [*SMALL, *overrides], [("--device", "device.name", device)])
    return prepare("test", config, choose_device(config.device, config.ipu, dry_run=dry_run), dry_run=dry_run)


def popart_of(*overrides: str) -> Any:
    """Return the options of a training session after one weight update."""
    run = prepared("ipu_emulator", *PLAIN, *overrides).start()
    session = run.session
    batch = next(iter(session.training_batches(run.data.train, 0, 0, 0)))
    session.train_step(batch, 0, 0.1)
    return session._training.options


def test_the_weight_update_is_compiled_as_in_graphcores_application_unless_told_otherwise() -> None:
    options = popart_of("run.seed=5")
    popart = options._Popart.options
    assert popart["replicatedCollectivesSettings.mergeAllReduceCollectives"] is True
    assert popart["replicatedCollectivesSettings.prepareScheduleForMergingCollectives"] is True
    assert popart["scheduleNonWeightUpdateGradientConsumersEarly"] is True
    assert popart["accumulateOuterFragmentSettings.schedule"] == 3  # OverlapMemoryOptimized
    assert popart["disableGradAccumulationTensorStreams"] is True
    assert popart["enableStableNorm"] is True
    assert options.random_seed == 5
    assert "defaultPrefetchBufferingDepth" not in popart


def test_each_of_them_is_a_choice() -> None:
    given = ["ipu.merge_all_reduces=false", "ipu.outer_schedule=serial", "ipu.gradient_streams=true"]
    given += ["ipu.stable_norm=false", "ipu.io_tiles=32", "ipu.prefetch_depth=3"]
    popart = popart_of(*given, "ipu.popart={enableExplicitIR: true, timeLimitScheduler: 2.5}")._Popart.options
    assert popart["replicatedCollectivesSettings.mergeAllReduceCollectives"] is False
    assert popart["accumulateOuterFragmentSettings.schedule"] == 1
    assert popart["disableGradAccumulationTensorStreams"] is False
    assert popart["enableStableNorm"] is False
    assert popart["defaultPrefetchBufferingDepth"] == 3
    assert (popart["enableExplicitIR"], popart["timeLimitScheduler"]) == (True, 2.5)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (
            {"enableExplicitIr": True},
            "'enableExplicitIr' is not an option of PopART 3.4; the nearest are enableExplicitIR,",
        ),
        ({"enableExplicitIR": 1}, "enableExplicitIR = 1 must be of type bool"),  # for PopART too, 1 is not a bool
        ({"firstDotOp": True}, "firstDotOp = True must be of type int"),
        ({"enableStableNorm": True}, "enableStableNorm is set by ipu.stable_norm; leave it out"),
        ({"disableOptimizerStateTensorStreams": True}, "set by checkpoints"),
    ],
)
def test_an_option_that_popart_lacks_or_another_field_sets_is_refused(given: Dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        check_popart_options(given)


def test_a_dry_run_refuses_them_too() -> None:
    with pytest.raises(ConfigError, match="not an option of PopART"):
        prepared("ipu", "ipu.ipus=2", "ipu.popart={nothing: true}", dry_run=True)


def test_the_names_are_those_that_the_emulator_takes_after_poptorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EMULATOR))
    from poptorch._options import backend_options as known

    types = {bool: known.BOOL, int: known.INTEGER | known.ENUM, float: known.DOUBLE, str: known.STRING}
    of_all = {name for names in types.values() for name in names}
    assert set(TAKEN) <= of_all
    for kind, names in OPTIONS.items():
        assert set(names) == {name for name in types[kind] if "_" not in name} - set(TAKEN)
    assert "poptorch" in sys.modules


def test_fetching_ahead_needs_tiles_that_transfer() -> None:
    with pytest.raises(ConfigError, match="prefetch_depth 3 needs tiles that transfer"):
        load_config("generated_smoke", ["ipu.prefetch_depth=3"])


@pytest.mark.parametrize(
    "splits", [[], ["ipu.splits=[]"], ["ipu.splits=[stages.1.0]", "batch.micro_batch_size=4"]], ids=str
)
def test_the_ipu_model_is_planned_with_one_replica_and_says_so(splits: List[str]) -> None:
    from backends.ipu.device import IpuDevice

    config = load_config("generated_smoke", [*SMALL, "ipu.ipus=4", *splits])
    run = prepare("test", config, IpuDevice("ipu_model", "a test", config.ipu), dry_run=True)
    assert run.plan.replicas == 1
    assert run.plan.global_batch_size == 32  # the same weight update, by more accumulation
    assert "not the 4 of ipu.ipus, since the IPU Model has no replicas" in run.placement.details["ipus"]


def test_several_processes_cannot_share_the_ipu_model() -> None:
    from backends.ipu.device import IpuDevice
    from backends.ipu.layout import Launch

    config = load_config("generated_smoke", [*SMALL, "ipu.ipus=4"])
    with pytest.raises(ConfigError, match="ipu_model in 2 processes"):
        prepare("test", config, IpuDevice("ipu_model", "a test", config.ipu, Launch(0, 2)), dry_run=True)
