"""The IPU planner against what is published, on ImageNet networks, and its command line."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List

import matplotlib.image
import pytest
from matplotlib.axes import Axes

from backends.plan import Execution, IpuPlan, constants, plan_ipu
from backends.plan import __main__ as command
from backends.plan.calibrate import fit_code_bytes, fit_rates, predict
from backends.plan.compare import format_norm_comparison
from backends.plan.hardware import MIB, SYSTEMS
from backends.plan.plot import plot_plan
from backends.plan.published import CALIBRATION, JUDGED, KNOWN_GOOD, PUBLISHED, Configuration, Published
from backends.plan.trace import Trace

ROOT = Path(__file__).resolve().parents[2]
RUNNING = [row.configuration for row in PUBLISHED] + list(KNOWN_GOOD)


def traces(configuration: Configuration) -> Trace:
    return command._published_trace(configuration)  # cached: each network is traced once


def name_of(case: Any) -> str:
    return str(case.configuration.name if isinstance(case, Published) else case.name)


def test_the_halves_are_disjoint_and_whole_and_every_network_calibrates() -> None:
    assert len(CALIBRATION) == len(JUDGED) == 5
    assert not set(map(name_of, CALIBRATION)) & set(map(name_of, JUDGED))
    assert set(CALIBRATION + JUDGED) == set(PUBLISHED)


@pytest.mark.parametrize("row", JUDGED, ids=name_of)
def test_throughputs_that_it_was_not_calibrated_on_are_predicted_within_20_percent(row: Published) -> None:
    assert predict(traces, row).images_per_second == pytest.approx(row.images_per_second, rel=0.20)


def test_the_constants_are_those_that_the_fit_gives() -> None:
    fitted = fit_rates(traces)
    # Stored with three digits.
    assert fitted.product_efficiency == pytest.approx(constants.PRODUCT_EFFICIENCY, rel=2e-3)
    assert fitted.product_overhead_cycles == pytest.approx(constants.PRODUCT_OVERHEAD_CYCLES, rel=1e-3)
    assert fitted.all_reduce_efficiency == pytest.approx(constants.ALL_REDUCE_EFFICIENCY, rel=3e-3)
    assert fit_code_bytes(traces, RUNNING) == pytest.approx(constants.CODE_BYTES_PER_PRODUCT, abs=1)


def test_the_fit_finds_constants_that_made_the_numbers() -> None:
    true = replace(fit_rates(traces), product_efficiency=0.5, product_overhead_cycles=4000.0, all_reduce_efficiency=0.1)
    rows = [
        Published(
            row.configuration,
            plan_ipu(
                traces(row.configuration), row.configuration.execution, system=row.configuration.system, rates=true
            ).images_per_second,
        )
        for row in CALIBRATION
    ]
    found = fit_rates(traces, rows)
    assert found.product_efficiency == pytest.approx(0.5, rel=1e-3)
    assert found.product_overhead_cycles == pytest.approx(4000.0, rel=1e-3)
    assert found.all_reduce_efficiency == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("configuration", RUNNING, ids=name_of)
def test_configurations_that_are_known_to_run_are_accepted(configuration: Configuration) -> None:
    plan = plan_ipu(traces(configuration), configuration.execution, system=configuration.system)
    assert plan.refusals == ()


def plan_of(network: str, image_size: int, execution: Execution, system: str) -> IpuPlan:
    trace = command._trace(network, image_size, 3, None, norm="group", num_groups=4, proxy=False)
    return plan_ipu(trace, execution, system=system)


@pytest.mark.parametrize(
    "network, image_size, micro_batch_size, system",
    [
        ("efficientnet_b5", 456, 64, "mk1"),
        ("efficientnet_b4_g16", 380, 16, "mk2"),
        ("resnet50", 224, 64, "bow"),
        ("resnet50", 224, 8, "mk1"),
    ],
)
def test_what_is_plainly_too_large_for_one_ipu_is_refused(
    network: str, image_size: int, micro_batch_size: int, system: str
) -> None:
    plan = plan_of(network, image_size, Execution(micro_batch_size, 1), system)
    assert not plan.fits
    assert plan.stages[0].memory.total > 1.2 * plan.memory_bytes  # no matter of a few per cent


@pytest.mark.parametrize("configuration", [each for each in RUNNING if "ResNeXt" not in each.name], ids=name_of)
def test_twice_the_known_micro_batch_is_refused(configuration: Configuration) -> None:
    """Other than ResNeXt-101's, which the planner finds three quarters full, these were tuned to be nearly full."""
    execution = replace(configuration.execution, micro_batch_size=2 * configuration.execution.micro_batch_size)
    assert not plan_ipu(traces(configuration), execution, system=configuration.system).fits


def test_bow_is_faster_than_mk2_by_its_clock_where_computing_decides() -> None:
    execution = Execution(8, 64, recompute=True, available_memory_proportion=(0.15,))
    mk2, bow = (plan_of("resnet50", 224, execution, name) for name in ("mk2", "bow"))
    # Host transfers do not run at the clock of 1.85 / 1.325 = 1.396.
    assert 1.3 < bow.images_per_second / mk2.images_per_second < 1.397


def test_group_norm_frees_the_memory_that_batch_norm_ties_to_its_batch() -> None:
    tied = command._trace("resnet50", 224, 3, None, norm="batch", proxy=False)
    free = command._trace("resnet50", 224, 3, None, norm="group", num_groups=8, proxy=True)
    like = Execution(16, 4, recompute=True, available_memory_proportion=(0.15,))
    text = format_norm_comparison(tied, free, 32, like, SYSTEMS["mk2"])
    rows = [line.split() for line in text.splitlines()[2:]]
    assert rows[0][-1] == "refused"  # batch norm over 32 images
    sizes = [int(row[-5]) for row in rows]
    assert sizes == [32, 1, 2, 4, 8, 16, 32]
    memory = [float(row[-4].replace(",", "")) for row in rows]
    assert memory[1:] == sorted(memory[1:])
    freed = [float(row[-2].replace(",", "")) for row in rows]
    assert freed[1] > 300  # MiB, at one image: a third of the IPU
    assert freed[-1] < 0  # with as many images as batch norm it needs more: one tensor more is saved at each norm
    with pytest.raises(ValueError, match="norm_batch_size 48 does not divide the 64 images"):
        format_norm_comparison(tied, free, 48, like, SYSTEMS["mk2"])


def test_the_picture_shows_every_part_of_every_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: Dict[str, List[float]] = {}
    barh = Axes.barh

    def recording_barh(axes: Axes, y: Any, width: List[float], **style: Any) -> Any:
        drawn[style["label"]] = width
        return barh(axes, y, width, **style)

    monkeypatch.setattr(Axes, "barh", recording_barh)
    trace = command._trace("resnet20", 32, 3, None, norm="group", proxy=True)
    plan = plan_ipu(trace, Execution(16, 8, splits=("stages.1.0", "stages.2.0")))
    plot_plan(plan, tmp_path / "plan.png", "resnet20")
    assert len(drawn) == 7
    totals = [each.memory.total / MIB for each in plan.stages]
    assert [sum(widths[i] for widths in drawn.values()) for i in range(3)] == pytest.approx(totals)
    picture = matplotlib.image.imread(tmp_path / "plan.png")
    assert picture.shape[1] == 1500
    assert picture[..., :3].min() < 0.5  # something is drawn


def test_the_command_plans_a_shipped_experiment_in_a_process_of_its_own(tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    arguments = "--config fashion_rn20_gn8pn --set ipu.system=bow --ipus 4 --compare-norms 8 --plot".split()
    run = subprocess.run(
        [sys.executable, "-m", "backends.plan", *arguments, str(picture)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "Bow: 4 IPUs = " in run.stdout
    assert "global_batch_size 128 = micro_batch_size" in run.stdout
    assert "images/s expected" in run.stdout
    assert "batch, norm_batch_size 8" in run.stdout
    assert picture.exists()


def test_the_command_honours_given_splits_and_refuses_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    given = "--model resnet20 --ipus 4 --splits stages.1.0 --global-batch-size 256".split()
    assert command.main(given + ["--micro-batch-size", "32"]) == 0
    assert "1 from stages.1.0" in capsys.readouterr().out
    assert command.main(given) == 0  # the largest micro-batch that fits is the replica's whole share
    out = capsys.readouterr().out
    assert "gradient_accumulation 1 " not in out
    assert command.main(given + ["--micro-batch-size", "64"]) == 2
    assert "refused: gradient_accumulation 2 with 2 pipeline stages" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        ("", "nothing to plan"),
        ("--model resnet19", "network 'resnet19' is unknown"),
        ("--config no_such_config", "no such experiment"),
        ("--model resnet20 --ipus 3", "power of 2"),
        ("--model resnet20 --ipus 4 --splits stages.1.0 stages.2.0", "4 IPUs are not an integer x 3 stages"),
        ("--model resnet20 --ipus 2 --splits stages.1.0 --micro-batch-size 3", "not an integer x micro_batch_size 3"),
        ("--model resnet20 --ipus 2 --splits stages.9.0 --micro-batch-size 4", "'stages.9.0' is not a module"),
    ],
)
def test_wrong_arguments_are_errors_with_exit_code_2(
    arguments: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments.split()) == 2
    assert words in capsys.readouterr().err


def test_the_command_prints_published_against_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--published"]) == 0
    out = capsys.readouterr().out
    rows = out.splitlines()[1:11]
    assert [" judged " in row for row in rows] == [False, True] * 5
    assert [" calibrates " in row for row in rows] == [True, False] * 5
    assert "largest error of the judged half: +" in out
    assert command.main(["--calibrate"]) == 0
    assert f"CODE_BYTES_PER_PRODUCT = {constants.CODE_BYTES_PER_PRODUCT:.0f}" in capsys.readouterr().out
